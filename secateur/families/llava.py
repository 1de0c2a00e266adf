# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5 and similar models: a ViT, a two-layer projector, and a Llama-style decoder (Vicuna, Mistral, Qwen2).

The decoder must use transformers' AttentionInterface and compute nothing outside its layers; the check after an export
compares it with the model's own forward pass. Liu et al., "Improved Baselines with Visual Instruction
Tuning", arXiv 2310.03744.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, Form, random_model
from secateur.decoder import pieces
from secateur.decoder.pieces import Decoder
from secateur.errors import BadModel
from secateur.families import base
from secateur.vision.downsampled import Downsampled
from secateur.vision.encoder import VisionEncoder
from secateur.vision.native_sizes import only
from secateur.vision.preprocessing import one_view

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} assistant "
    + PARTS.replace("IMAGE", "")
    + " {{ eos_token }}{% else %} user "
    + PARTS.replace("IMAGE", "<image> ")
    + "{% endif %}{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)


class Family(base.Family):
    architecture = LlavaForConditionalGeneration
    image_processors = {
        "CLIPImageProcessor": one_view,
        "SiglipImageProcessor": one_view,
        "LlavaImageProcessor": partial(one_view, pads=True),
    }
    form = Form(
        "words",
        ("<pad>", "<s>", "</s>", "<image>", "<unk>"),
        TEMPLATE,
        bos="<s>",
        eos="</s>",
        pad="<pad>",
        unk="<unk>",
    )

    @classmethod
    def tiny(cls, seed: int = 0) -> Family:
        vision = CLIPVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
        )
        text = LlamaConfig(
            hidden_size=48,
            intermediate_size=64,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=64,
            max_position_embeddings=256,
        )
        return cls.random(vision, text, seed)

    @classmethod
    def random(cls, vision: CLIPVisionConfig | SiglipVisionConfig, text: LlamaConfig, seed: int = 0) -> Family:
        """Return a model with random weights; its vocabulary is <pad> <s> </s> <image> <unk> ... w0 w1 w2 ..."""
        text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 2
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            vision_feature_select_strategy="default" if isinstance(vision, CLIPVisionConfig) else "full",
        )
        edge = vision.image_size
        assert isinstance(edge, int)
        seen = CLIPImageProcessorPil(
            size={"height": edge, "width": edge},
            crop_size={"height": edge, "width": edge},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.25, 0.25, 0.25],
        )
        processor = tiny_model.processor(
            "llava",
            cls.form,
            seen,
            text.vocab_size,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            num_additional_image_tokens=int(isinstance(vision, CLIPVisionConfig)),
        )
        return cls(random_model(LlavaForConditionalGeneration, config, seed), processor, "random")

    def vision(self, reads: tuple[str, ...] = (), grid: tuple[int, int] | None = None) -> nn.Module:
        layers: Any = self.model.config.vision_feature_layer
        feature_layers = [layers] if isinstance(layers, int) else list(layers)
        tower, class_tokens = self.model.model.vision_tower, int(self.dimensions.class_token)
        if grid is None:
            return VisionEncoder(tower, feature_layers, class_tokens, reads)
        return Downsampled(tower, feature_layers, class_tokens, grid)

    def projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    @property
    def decoder(self) -> Decoder:
        return pieces.decoder(self.model.model.language_model, self.model.lm_head)

    @property
    def dimensions(self) -> Dimensions:
        width = self.model.model.multi_modal_projector.linear_1.in_features
        return pieces.dimensions(self.model.config.text_config, width, class_token=self._class_token)

    @property
    def patch_key_width(self) -> int:
        return int(self._tower.hidden_size // self._tower.num_attention_heads)

    @property
    def _tower(self) -> Any:
        return self.model.config.vision_config

    @property
    def _class_token(self) -> bool:
        return bool(self._tower.model_type == "clip_vision_model")

    @property
    def bucket(self) -> base.Size:
        size = self._tower.image_size
        return only(self.image_size, (size, size) if isinstance(size, int) else (size[0], size[1]))

    @property
    def pixels(self) -> tuple[int, ...]:
        return (3, *self.bucket)

    @property
    def grids(self) -> tuple[base.Size, ...]:
        if self._class_token != (self.model.config.vision_feature_select_strategy == "default"):
            raise BadModel("the class token must be left out: set vision_feature_select_strategy to 'default' for CLIP")
        rows, columns = (edge // self._tower.patch_size for edge in self.bucket)
        return ((rows, columns),)

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        return {"input_ids": input_ids, "pixel_values": torch.from_numpy(pixel_values)}
