# SPDX-License-Identifier: Apache-2.0
"""Every decoder and vision encoder that LLaVA checkpoints combine, against transformers' own generate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import random_model
from secateur.errors import BadModel
from secateur.families import llava
from tests.model_fixtures.exporting import check_in_onnx, random_pixels
from tests.model_fixtures.stepping import check_steps, question_ids

VISION = tiny_model.VISION | {"image_size": 24, "patch_size": 4}
TEXT = tiny_model.TEXT | {"vocab_size": 64, "max_position_embeddings": 256}
TOWERS: dict[str, Any] = {
    "clip": CLIPVisionConfig,
    "siglip": SiglipVisionConfig,
}
DECODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama3": (
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 5e5,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "vicuna": (LlamaConfig, {"num_key_value_heads": 4}),
    "mistral": (MistralConfig, {"head_dim": 16, "sliding_window": 96}),
    "qwen2": (Qwen2Config, {}),
    "qwen2-tied": (Qwen2Config, {"tie_word_embeddings": True}),
}


def family(tower: str, decoder: str, seed: int = 0, **config: Any) -> llava.Family:
    """A random LLaVA with this encoder and decoder; `config` are settings of LlavaConfig."""
    made = llava.Family.random(TOWERS[tower](**VISION), DECODERS[decoder][0](**TEXT | DECODERS[decoder][1]), seed)
    if config:
        whole = LlavaConfig(**made.model.config.to_diff_dict() | config)
        model = random_model(LlavaForConditionalGeneration, whole, seed)
        return llava.Family(model, made.processor, "random")
    return made


def own_features(made: llava.Family, pixels: Tensor) -> Tensor:
    return torch.stack(list(made.model.get_image_features(pixel_values=pixels).pooler_output))


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("decoder", DECODERS)
def test_pieces_equal_generate(tower: str, decoder: str) -> None:
    made = family(tower, decoder)
    assert made.layout.vision_tokens == 36 and made.dimensions.class_token == (tower == "clip")
    check_steps(made)
    check_steps(made, decomposed=True, steps=1)


@pytest.mark.parametrize("tower", TOWERS)
def test_two_images(tower: str) -> None:
    pair = family(tower, "qwen2").at(images=2)
    assert pair.layout.images == 2 and pair.layout.vision_tokens == 72
    check_steps(pair)


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("layers", [-1, -2, [-3, -1], [0, 1, 3]])
def test_feature_layers(tower: str, layers: int | list[int], tmp_path: Path) -> None:
    """Several layers are concatenated, and the projector has their total width."""
    made = family(tower, "llama", vision_feature_layer=layers)
    pixels = random_pixels(made.pixels)
    found = made.vision()(pixels)
    assert found.shape[2] == made.dimensions.vision_width == 32 * (len(layers) if isinstance(layers, list) else 1)
    torch.testing.assert_close(made.projector()(found), own_features(made, pixels), rtol=1e-5, atol=1e-5)
    check_steps(made, steps=1)
    if layers == [-3, -1]:
        check_in_onnx(made.vision(("received.-2",)), made.pixels, 23, tmp_path)


@pytest.mark.parametrize(("tower", "strategy"), [("clip", "full"), ("siglip", "default")])
def test_a_strategy_that_does_not_fit_the_tower(tower: str, strategy: str) -> None:
    """CLIP's class token would become a vision token; SigLIP's first patch would be lost."""
    with pytest.raises(BadModel, match="vision_feature_select_strategy"):
        _ = family(tower, "llama", vision_feature_select_strategy=strategy).grids


def test_a_sliding_window_bounds_the_context() -> None:
    """Up to the window, attention is plain causal; in a longer context a segment would attend to too many rows."""
    made = family("clip", "mistral")
    assert made.dimensions.context == 96 and made.dimensions.head_dim == 16
    assert len(question_ids(made)) < 96
    assert family("clip", "qwen2").dimensions.context == 256


def test_qwen2_has_biases() -> None:
    """They are random and large, so that a missing bias would be noticed."""
    layers: Any = family("clip", "qwen2").decoder.layers
    assert all(layer.self_attn.q_proj.bias.abs().max() > 0.4 for layer in layers)
