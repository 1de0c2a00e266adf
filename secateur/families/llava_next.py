# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT (1.6): LLaVA with a view of the whole image and tiles of a canvas that suits the image's shape.

Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    PreTrainedModel,
)
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from secateur.bundle.layout import Dimensions, View
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, Form, random_model
from secateur.decoder import pieces
from secateur.decoder.pieces import Decoder
from secateur.errors import BadModel
from secateur.families import base
from secateur.vision import anyres
from secateur.vision.encoder import VisionEncoder
from secateur.vision.preprocessing import StepsFunction, canvas_tiles

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    + PARTS.replace("IMAGE", "")
    + "{{ eos_token }}{% elif m['role'] == 'user' %}[INST] "
    + PARTS.replace("IMAGE", "<image>\n")
    + " [/INST]{% else %}<<SYS>>\n"
    + PARTS.replace("IMAGE", "")
    + "\n<</SYS>>\n{% endif %}{% endfor %}"
)


class Family(base.Family):
    """LLaVA-NeXT, and the base of LLaVA-OneVision: images of any size; the bucket fixes their tiles."""

    architecture: ClassVar[type[PreTrainedModel]] = LlavaNextForConditionalGeneration
    image_processors: ClassVar[Mapping[str, StepsFunction]] = {"LlavaNextImageProcessor": canvas_tiles}
    form = Form(
        "pieces",
        ("<unk>", "<s>", "</s>", "<image>", "<pad>"),
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
            image_size=18,
            patch_size=6,
        )
        canvases = [[18, 36], [36, 18], [36, 36], [54, 18], [18, 54]]
        processor: Any = tiny_model.processor(
            "llava_next",
            cls.form,
            LlavaNextImageProcessorPil(
                size={"shortest_edge": 18}, crop_size={"height": 18, "width": 18}, image_grid_pinpoints=canvases
            ),
            patch_size=6,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        config = LlavaNextConfig(
            vision_config=vision,
            text_config=LlamaConfig(**tiny_model.sizes(processor)),
            image_token_index=processor.image_token_id,
            image_grid_pinpoints=canvases,
        )
        return cls(random_model(LlavaNextForConditionalGeneration, config, seed), processor, "random")

    @property
    def bucket(self) -> base.Size:
        """Any size; the default is the canvas nearest to 2 x 2 tiles."""
        if self.image_size is not None:
            return self.image_size
        edge, canvases = self._tower.image_size, self.model.config.image_grid_pinpoints
        height, width = min(canvases, key=lambda size: sum(abs(length - 2 * edge) for length in size))
        return height, width

    @property
    def arrangement(self) -> anyres.Arrangement:
        """Tiles and rows of an image of the bucket's size.

        Raises:
            BadModel: the bucket is not supported, or the checkpoint's configuration is inconsistent.
        """
        return self._arranged(self.bucket)

    def _arranged(self, size: base.Size) -> anyres.Arrangement:
        return anyres.arrangement(size, self.model.config.image_grid_pinpoints, self._tower.image_size, self._side)

    @property
    def _side(self) -> int:
        """Edge of a tile in patches."""
        if self._class_token != (self.model.config.vision_feature_select_strategy == "default"):
            raise BadModel("the class token must be left out: set vision_feature_select_strategy to 'default' for CLIP")
        return int(self._tower.image_size // self._tower.patch_size)

    @property
    def grids(self) -> tuple[base.Size, ...]:
        return tuple(view.grid for view in self.views)

    @property
    def views(self) -> tuple[View, ...]:
        return self.arrangement.views

    @property
    def pixels(self) -> tuple[int, ...]:
        return self.arrangement.tiles, 3, self._tower.image_size, self._tower.image_size

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        if grid is not None:
            raise BadModel(
                "an image of several tiles cannot be downsampled within the graph; export a smaller --image-size, "
                "which has fewer tiles, or use another method"
            )
        encoder = VisionEncoder(self.model.model.vision_tower, self._feature_layers, int(self._class_token), reads)
        return anyres.AnyRes(encoder, self.arrangement, reads)

    def projector(self) -> nn.Module:
        return anyres.AnyResProjector(self.model.model.multi_modal_projector, self.model.model.image_newline)

    @property
    def decoder(self) -> Decoder:
        return pieces.decoder(self.model.model.language_model, self.model.lm_head)

    @property
    def dimensions(self) -> Dimensions:
        width = self._tower.hidden_size * len(self._feature_layers) + 1  # 1 for the newline flag
        return pieces.dimensions(self.model.config.text_config, width, class_token=self._class_token)

    @property
    def patch_key_width(self) -> int:
        return int(self._tower.hidden_size // self._tower.num_attention_heads)

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        sizes = torch.tensor([self.bucket] * len(pixel_values))
        return {"input_ids": input_ids, "pixel_values": torch.from_numpy(pixel_values), "image_sizes": sizes}

    @property
    def _feature_layers(self) -> list[int]:
        layers: Any = self.model.config.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers)

    @property
    def _tower(self) -> Any:
        return self.model.config.vision_config

    @property
    def _class_token(self) -> bool:
        return bool(self._tower.model_type == "clip_vision_model")
