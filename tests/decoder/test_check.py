# SPDX-License-Identifier: Apache-2.0
"""A decoder that segments can run gives what transformers gives; any other is refused when it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, LlavaNextConfig, LlavaNextForConditionalGeneration

from secateur.checkpoints import tiny_model
from secateur.decoder import check
from secateur.errors import BadModel
from secateur.families import llava_next
from secateur.families.base import Family
from secateur.load_model import load
from secateur.runtime.preprocess import pixel_values
from tests.family_cases import case
from tests.model_fixtures.stepping import check_steps, question_ids

GRANITE = {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 5.0, "attention_multiplier": 0.3}
FITTING: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {}, "granite": GRANITE, "gemma": {}, "gemma2": {}, "phi3": {},
    "olmo": {}, "olmo2": {}, "cohere2": {}, "smollm3": {"num_hidden_layers": 4}, "glm4": {}, "arcee": {}, "apertus": {},
}  # fmt: skip
REFUSED = {
    "mixtral": r"MixtralModel has experts \(layers.0.mlp.experts\): each row takes other weights",
    "qwen3_moe": r"Qwen3MoeModel has experts \(layers.0.mlp.experts\)",
    "granitemoe": r"GraniteMoeModel has experts \(layers.0.block_sparse_moe\)",
    "gpt_oss": r"GptOssModel has experts",
    "nanochat": r"NanoChatModel changes its rows before the first layer, and not only by a factor",
    "gemma3_text": r"Gemma3TextModel cannot be cut into segments \(.*'layer_type'\)",
    "nemotron": r"layers of NemotronDecoderLayer do not use transformers' cache",
    "phi": r"PhiModel has no 'norm'",
    "gpt_neox": r"GPTNeoXModel has no 'embed_tokens'",
    "jamba": r"JambaModel has no 'rotary_emb'",
}
OTHER_HEADS = ("cohere2", "glm4")
"""Decoders whose rotary embedding turns other pairs than Llama's."""


def with_decoder(kind: str, **further: Any) -> Family:
    """LLaVA-NeXT with a decoder of another kind, random weights, and norms and biases that are not ones and zeros."""
    tiny = llava_next.Family.tiny()
    settings: Any = tiny.model.config.to_dict()
    text = tiny_model.sizes(tiny.processor) | {"eos_token_id": 2, "pad_token_id": 0, "bos_token_id": 1} | further
    config = LlavaNextConfig(**settings | {"text_config": AutoConfig.for_model(kind, **text).to_dict()})
    return llava_next.Family(tiny_model.random_model(LlavaNextForConditionalGeneration, config, 0), tiny.processor, "x")


@pytest.mark.parametrize("kind", FITTING)
def test_segments_equal_generate(kind: str) -> None:
    family = with_decoder(kind, **FITTING[kind])
    check.check_structure(family.model)
    check.check_decoder(family.model.get_decoder(), family.decoder, family.entry_scale)
    assert family.entry_scale == FITTING[kind].get("embedding_multiplier", 1)
    check_steps(family)


@pytest.mark.parametrize("kind", REFUSED)
def test_others_are_refused(kind: str) -> None:
    family = with_decoder(kind)
    with pytest.raises(BadModel, match=REFUSED[kind]) as problem:
        check.check_structure(family.model)
        check.check_decoder(family.model.get_decoder(), family.decoder, family.entry_scale)
    assert "\n" not in str(problem.value) and "choose a checkpoint with another decoder, such as" in str(problem.value)


def test_one_odd_layer_is_found() -> None:
    """The comparison runs a layer of every kind: the last of four differs, and adds something that a segment cannot."""
    family = with_decoder("llama")
    layers: Any = family.decoder.layers
    assert check.kinds(layers) == 1
    layers[2].self_attn.window = 7
    assert check.kinds(layers) == 3
    whole = family.model.get_decoder().forward
    family.model.get_decoder().forward = lambda **given: _moved(whole(**given))
    with pytest.raises(BadModel, match=r"computes something beside its layers \(error 5.0e-01 without it\)"):
        check.check_decoder(family.model.get_decoder(), family.decoder, family.entry_scale)
    assert len(family.decoder.layers) == 4


def _moved(out: Any) -> Any:
    out.last_hidden_state = out.last_hidden_state * 2
    return out


@pytest.mark.parametrize("kind", OTHER_HEADS)
def test_methods_that_compute_heads_refuse_other_rotations(kind: str) -> None:
    with pytest.raises(
        BadModel, match="computes its queries and keys in another way than Llama's; choose another method"
    ):
        with_decoder(kind).decoder.projections(1)


def test_experts_are_refused_before_any_weight_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    family = with_decoder("mixtral")
    family.model.save_pretrained(tmp_path)
    family.processor.save_pretrained(tmp_path)
    monkeypatch.setattr("secateur.checkpoints.checkpoint.Entry.read", lambda entry: pytest.fail("a weight is read"))
    with pytest.raises(BadModel, match="has experts"):
        load(str(tmp_path))


def test_a_bundle_of_granite_answers_as_transformers(tmp_path: Path) -> None:
    """From the saved checkpoint: the multiplier is in embedding and projector, and pruned rows are scaled too."""
    made = with_decoder("granite", **GRANITE)
    made.model.save_pretrained(tmp_path / "model")
    made.processor.save_pretrained(tmp_path / "model")
    family = load(str(tmp_path / "model"))
    one = case(family, ("btp",), tmp_path / "bundle")
    assert not one.refused and all(check.passed for check in one.exported.parity)
    image = np.random.default_rng(0).integers(0, 256, (*family.bucket, 3), np.uint8)
    answer = one.vlm.ask(image, "w1 w5 w9", schedule="full", max_new_tokens=6)
    pixels = one.vlm.bundle.preprocess
    ids = torch.tensor([question_ids(family)])
    given = family.inputs(ids, pixel_values(Image.fromarray(image), pixels))
    expected = made.model.generate(**given, max_new_tokens=6, do_sample=False)[0, ids.shape[1] :].tolist()
    assert list(answer.tokens) == expected
