# SPDX-License-Identifier: Apache-2.0
"""The gate of ALVTS on real layers: ONNX Runtime chooses what torch chooses, and the graph stays thin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model, Qwen3Config, Qwen3Model

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Gate
from secateur.decoder.pieces import LlamaProjections
from secateur.methods.alvts import Method
from secateur.selection import low_rank as lowrank
from secateur.selection.low_rank import tensor_name
from secateur.selection.selector import GateSite

WIDTH, HEADS, KV_HEADS, HEAD_DIM, START, TOKENS, KEEP, RANK = 16, 4, 2, 8, 3, 20, 7, 6
PLACE = Dimensions(2, WIDTH, HEADS, KV_HEADS, HEAD_DIM, 32, 16, 64, 24)
SIZES: Any = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "vocab_size": 16,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaModel(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2Model(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3Model(Qwen3Config(**SIZES)),
}


def place(kind: str, layer: int, dtype: torch.dtype, score: str) -> GateSite:
    with torch.random.fork_rng():
        torch.manual_seed(layer)
        model = MODELS[kind]()
        for weight in model.parameters():
            weight.data.normal_()
            weight.data = weight.data.to(dtype)
    model.requires_grad_(False)
    projections = LlamaProjections(model.layers[layer], model.rotary_emb)
    factors = lowrank.svd(projections, RANK)._asdict()
    tensors = {tensor_name(layer, part): factor.numpy() for part, factor in factors.items()}
    gate = Gate(layer, KEEP, "route", {"rank": RANK, "score": score})
    return GateSite(gate, TOKENS, START, (4, 5), PLACE, tensors, projections)


@pytest.mark.parametrize(
    ("dtype", "opset", "asked"),
    [(torch.float32, 23, (("qwen2", "v2v"), ("qwen3", "product"))), (torch.float16, 20, (("llama", "product"),))],
    ids=["fp32", "fp16"],
)
def test_onnx_chooses_the_same(
    dtype: torch.dtype, opset: int, asked: tuple[tuple[str, str], ...], random_rows: Any, exported_slots: Any
) -> None:
    """Batches with padding, positions with a gap, three kinds of layers; equal inputs give equal slots in fp16 too."""
    selectors = [Method.choose(place(kind, 1, dtype, score)) for kind, score in asked]
    fed = []
    for seed in range(len(selectors)):
        rows = random_rows(TOKENS, seed=seed)
        positions = rows.position_ids + 5 * (rows.position_ids >= START + TOKENS)
        mask = rows.attention_mask.clone()
        mask[2, -4:] = 0
        hidden = rows.hidden_states.to(dtype)
        fed.append(rows._replace(hidden_states=hidden, position_ids=positions, attention_mask=mask))
    got = exported_slots(selectors, fed, [KEEP] * len(selectors), opset)
    for selector, rows, slots in zip(selectors, fed, got.outputs, strict=True):
        np.testing.assert_array_equal(slots, selector(rows).numpy())
        assert len(np.unique(slots, axis=0)) > 3  # samples choose for themselves
    # Neither the layer's own weights nor the product of the thin ones travel with a gate.
    shapes = [tuple(tensor.dims) for tensor in got.graph.initializer]
    assert sum(shape in ((2 * RANK, WIDTH), (WIDTH, 2 * RANK)) for shape in shapes) == len(selectors)
    assert not {(HEADS * HEAD_DIM, WIDTH), (WIDTH, HEADS * HEAD_DIM)} & set(shapes)
    # Three thin products and the scores; a bias may be merged into its product.
    products = sum(node.op_type in ("MatMul", "Gemm") for node in got.graph.node)
    assert products == 4 * len(selectors)
    assert len(got.graph.node) < 90 * len(selectors)
