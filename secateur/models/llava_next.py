# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT (1.6): LLaVA that sees an image whole and in tiles, on a canvas whose shape suits the image.

Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024.
"""

from __future__ import annotations

from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig, LlavaNextForConditionalGeneration
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from secateur.models import _tiny, _tiny_decoder
from secateur.models._anyres_family import AnyResFamily
from secateur.models._random import random_model


class Family(AnyResFamily):
    architecture = LlavaNextForConditionalGeneration

    @classmethod
    def tiny(cls, seed: int = 0) -> Family:
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=18,
            patch_size=6,
        )
        canvases = [[18, 36], [36, 18], [36, 36], [54, 18], [18, 54]]
        processor: Any = _tiny.processor(
            "llava_next",
            LlavaNextImageProcessorPil(
                size={"shortest_edge": 18}, crop_size={"height": 18, "width": 18}, image_grid_pinpoints=canvases
            ),
            patch_size=6,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        config = LlavaNextConfig(
            vision_config=vision,
            text_config=LlamaConfig(**_tiny_decoder.sizes(processor)),
            image_token_index=processor.image_token_id,
            image_grid_pinpoints=canvases,
        )
        return cls(random_model(LlavaNextForConditionalGeneration, config, seed), processor, "random")
