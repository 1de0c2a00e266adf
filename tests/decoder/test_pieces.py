# SPDX-License-Identifier: Apache-2.0
"""Projections against the queries and keys in transformers' own layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    GraniteConfig,
    GraniteModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    Phi3Config,
    Phi3Model,
    Qwen2Config,
    Qwen2Model,
    Qwen3Config,
    Qwen3Model,
)

from secateur.decoder import attention
from secateur.decoder.pieces import Decoder, LlamaProjections
from secateur.errors import BadModel
from secateur.families.base import Family
from secateur.selection.statistics import Projections

SIZES: Any = {
    "hidden_size": 24,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
KINDS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralModel(MistralConfig(**SIZES)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES, head_dim=8)),
}


def decoder(make: Callable[[], Any]) -> Decoder:
    """A model with random weights, norms and biases included."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval().requires_grad_(False)
        for weight in model.parameters():
            weight.data.normal_(std=0.7)
    return Decoder(model.config, model.embed_tokens, model.layers, model.rotary_emb, model.norm, nn.Identity())


def random_rows() -> tuple[Tensor, Tensor]:
    """Rows [2, 7, D] and positions with gaps."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 7, 24, generator=generator), torch.tensor([[0, 1, 2, 5, 9, 10, 40], [3, 4, 5, 6, 7, 8, 9]])


def queries_and_keys(projections: Projections, rows: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    normalized = projections.normalize(rows)
    query = F.linear(normalized, projections.query, projections.query_bias)
    return projections.heads(query, F.linear(normalized, projections.key, projections.key_bias), position_ids)


@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_layer(kind: str) -> None:
    text, (rows, position_ids) = decoder(KINDS[kind]), random_rows()
    tap, mask = attention.Tap(), attention.additive_mask(torch.ones(2, 7), 7, 0, torch.float32)
    with attention.active(text.config):
        attention.run_layer(text.layers[1], rows, mask, text.rotary(rows, position_ids), tap)
    query, key = queries_and_keys(text.projections(1), rows, position_ids)
    torch.testing.assert_close(query, tap.query)
    torch.testing.assert_close(key, tap.rows[1][0].permute(1, 2, 0, 3))
    assert (text.projections(1).query_bias is not None) == (kind == "qwen2")


@pytest.mark.parametrize("kind", KINDS)
def test_stays_in_fp32_with_fp16_weights(kind: str) -> None:
    text, (rows, position_ids) = decoder(KINDS[kind]), random_rows()
    exact = queries_and_keys(text.projections(0), rows, position_ids)
    for weight in text.layers.parameters():
        weight.data = weight.data.half()
    halved = text.projections(0)
    normalized = halved.normalize(rows)
    biases = [None if b is None else b.float() for b in (halved.query_bias, halved.key_bias)]
    query = F.linear(normalized, halved.query.float(), biases[0])
    got = halved.heads(query, F.linear(normalized, halved.key.float(), biases[1]), position_ids)
    for one, other in zip(got, exact, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=2e-2, rtol=2e-2)


def test_projections_of_a_family(tiny: Family) -> None:
    projections = tiny.decoder.projections(2)
    d = tiny.dimensions
    assert projections.query.shape == (d.heads * d.head_dim, d.width)
    assert projections.key.shape == (d.kv_heads * d.head_dim, d.width)


def test_weights_are_neither_copied_nor_registered() -> None:
    layer: Any = decoder(KINDS["llama"]).layers[0]
    projections = LlamaProjections(layer, nn.Identity())
    assert projections.query.data_ptr() == layer.self_attn.q_proj.weight.data_ptr()
    assert [name for name, _ in projections.named_parameters()] == ["norm.weight"]


def test_other_layers_are_refused() -> None:
    with pytest.raises(BadModel, match="q_proj"):
        decoder(lambda: Phi3Model(Phi3Config(**SIZES))).projections(0)
    with pytest.raises(BadModel, match="scales"):
        decoder(lambda: GraniteModel(GraniteConfig(**SIZES, attention_multiplier=0.5))).projections(0)
