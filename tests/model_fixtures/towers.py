# SPDX-License-Identifier: Apache-2.0
"""Helpers for vision encoders: a small model without a class token, transformers' attention maps, streamed weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import LlamaConfig, SiglipVisionConfig

from secateur.checkpoints import tiny_model
from secateur.checkpoints.streaming import stream
from secateur.families import llava
from secateur.families.base import Family
from tests.model_fixtures.exporting import random_pixels


def siglip_family(image_size: int = 24, head: bool = True) -> llava.Family:
    """A random LLaVA whose vision encoder has no class token."""
    vision = SiglipVisionConfig(**tiny_model.VISION, image_size=image_size, patch_size=4, vision_use_head=head)
    sizes = {"num_hidden_layers": 2, "num_key_value_heads": 4, "vocab_size": 64, "max_position_embeddings": 256}
    return llava.Family.random(vision, LlamaConfig(**tiny_model.TEXT | sizes))


def tower_of(family: Family) -> Any:
    return family.model.model.vision_tower


def processed(family: Family) -> dict[str, Any]:
    """Run transformers' processor on a prompt with one image of the bucket's size."""
    height, width = family.bucket
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    token = family.tokenizer.convert_ids_to_tokens(family.image_token_id)
    return dict(family.processor(images=[Image.fromarray(noise)], text=[f"w1 {token} w2"], return_tensors="pt"))


def eager_attentions(tower: Any, pixels: Tensor) -> list[Tensor]:
    """Attention maps [B, H, n, n] of every layer of a vision encoder, as transformers' eager attention returns them."""
    before = tower.config._attn_implementation
    tower.set_attn_implementation("eager")
    try:
        return list(tower(pixels, output_attentions=True).attentions)
    finally:
        tower.set_attn_implementation(before)


def patch_scores(weights: Tensor) -> dict[str, Tensor]:
    """Scores [B * T, patches] by definition, from maps [B * T, H, n, n]; n that is not a square has a class token."""
    first = weights.shape[-1] - int(weights.shape[-1] ** 0.5) ** 2
    patches = weights[:, :, first:, first:]
    scores = {"received": patches.sum(2).mean(1), "given": patches.sum(3).mean(1)}
    return scores | ({"class_token": weights[:, :, 0, first:].mean(1)} if first else {})


def check_streamed(family: Family, folder: Path) -> None:
    """Check that a model whose weights stay in files gives the same vision tokens."""
    family.model.save_pretrained(folder)
    model = stream(type(family.model), folder)
    assert model is not None
    streamed, pixels = type(family)(model, family.processor, "random"), random_pixels(family.pixels)
    with torch.no_grad():
        tokens = streamed.projector()(streamed.vision()(pixels))
    torch.testing.assert_close(tokens, family.projector()(family.vision()(pixels)))
