# SPDX-License-Identifier: Apache-2.0
"""LLaVA-1.5 and similar models: a ViT, a two-layer projector, and a Llama-style decoder (Vicuna, Mistral, Qwen2).

The decoder may be any that `decoder.check` accepts. Liu et al., "Improved Baselines with Visual Instruction Tuning",
arXiv 2310.03744.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    SiglipVisionConfig,
)

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, TinyTokenizer
from secateur.decoder import pieces
from secateur.errors import BadModel
from secateur.families import base
from secateur.vision.downsampled import Downsampled
from secateur.vision.encoder import VisionEncoder
from secateur.vision.native_sizes import only
from secateur.vision.preprocessing import StepsFunction, one_view

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %} assistant "
    + PARTS.replace("IMAGE", "")
    + " {{ eos_token }}{% else %} user "
    + PARTS.replace("IMAGE", "<image> ")
    + "{% endif %}{% endfor %}{% if add_generation_prompt %} assistant{% endif %}"
)


class Family(base.Family):
    """LLaVA, and the base of LLaVA-NeXT and LLaVA-OneVision."""

    architecture: ClassVar[type[PreTrainedModel]] = LlavaForConditionalGeneration
    image_processors: ClassVar[Mapping[str, StepsFunction]] = {
        "CLIPImageProcessor": one_view,
        "SiglipImageProcessor": one_view,
        "LlavaImageProcessor": partial(one_view, pads=True),
    }
    tiny_tokenizer = TinyTokenizer(
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
        vision = CLIPVisionConfig(**tiny_model.VISION, image_size=24, patch_size=4)
        text = LlamaConfig(**tiny_model.TEXT | {"vocab_size": 64, "max_position_embeddings": 256})
        return cls.random(vision, text, seed)

    @classmethod
    def random(cls, vision: CLIPVisionConfig | SiglipVisionConfig, text: LlamaConfig, seed: int = 0) -> Family:
        """Return a model with random weights; its vocabulary is <pad> <s> </s> <image> <unk> ... w0 w1 w2 ..."""
        text.pad_token_id, text.bos_token_id, text.eos_token_id = 0, 1, 2
        strategy = "default" if isinstance(vision, CLIPVisionConfig) else "full"
        edge: Any = vision.image_size
        processor = cls.tiny_processor(
            CLIPImageProcessorPil(
                size={"height": edge, "width": edge},
                crop_size={"height": edge, "width": edge},
                image_mean=[0.5, 0.5, 0.5],
                image_std=[0.25, 0.25, 0.25],
            ),
            vocabulary=text.vocab_size,
            patch_size=vision.patch_size,
            vision_feature_select_strategy=strategy,
            num_additional_image_tokens=int(strategy == "default"),
        )
        return cls.from_config(
            processor,
            seed,
            vision_config=vision,
            text_config=text,
            image_token_index=3,
            vision_feature_select_strategy=strategy,
        )

    def check_processor(self) -> None:
        """Check the processor's settings from which transformers counts the tokens of an image."""
        made, where = self.processor, "in processor_config.json"
        patch = self.vision_config.patch_size
        if getattr(made, "patch_size", patch) != patch:
            raise BadModel(
                f"patch_size is {made.patch_size} {where}, and the vision encoder's is {patch}; set it to that"
            )
        left_out = int(made.vision_feature_select_strategy == "default")
        if getattr(made, "num_additional_image_tokens", left_out) != left_out:
            raise BadModel(
                f"num_additional_image_tokens is {made.num_additional_image_tokens} {where}, and "
                f"vision_feature_select_strategy '{made.vision_feature_select_strategy}' leaves out {left_out} of an "
                f"image's tokens; set num_additional_image_tokens to {left_out}"
            )

    @property
    def bucket(self) -> base.Size:
        return only(self.image_size, self._edges)

    @property
    def grids(self) -> tuple[base.Size, ...]:
        return (self._patches,)

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        if grid is None:
            return self._encoder(reads)
        return Downsampled(self.model.model.vision_tower, self._feature_layers, int(self._class_token), grid)

    @property
    def dimensions(self) -> Dimensions:
        width = self.model.model.multi_modal_projector.linear_1.in_features
        return pieces.dimensions(self.model.config.text_config, width, class_token=self._class_token)

    def _encoder(self, reads: tuple[str, ...]) -> VisionEncoder:
        return VisionEncoder(self.model.model.vision_tower, self._feature_layers, int(self._class_token), reads)

    @property
    def _feature_layers(self) -> list[int]:
        layers: Any = self.model.config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    @property
    def _class_token(self) -> bool:
        return bool(self.vision_config.model_type == "clip_vision_model")

    @property
    def _edges(self) -> base.Size:
        """Height and width of the input of the vision encoder."""
        size = self.vision_config.image_size
        return (size, size) if isinstance(size, int) else (size[0], size[1])

    @property
    def _patches(self) -> base.Size:
        """Rows and columns of patches of the vision encoder."""
        strategy = self.model.config.vision_feature_select_strategy
        if self._class_token != (strategy == "default"):
            encoder = "CLIP, whose class token would be one of the image's tokens" if self._class_token else "SigLIP"
            raise BadModel(
                f"vision_feature_select_strategy '{strategy}' in config.json is not supported for {encoder}; supported "
                "are 'default' for CLIP and 'full' for SigLIP. The model was trained with one of them: do not change "
                "it, choose another checkpoint"
            )
        rows, columns = (edge // self.vision_config.patch_size for edge in self._edges)
        return rows, columns
