# SPDX-License-Identifier: Apache-2.0
"""InternVL 2.5 to 3.5 as converted for transformers: InternViT, pixel shuffle, and a Llama-style decoder.

An image is split into tiles, row by row; if there are several, the whole image is added as the last one. Each tile is
a view. Chen et al., "Expanding Performance Boundaries of Open-Source Multimodal Models", arXiv 2412.05271.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import chatml
from secateur.decoder import pieces
from secateur.errors import BadModel
from secateur.families import base
from secateur.vision.encoder import VisionEncoder
from secateur.vision.preprocessing import grid_tiles
from secateur.vision.tiles import PixelShuffle, Tiles, refuse_downsampling

TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


class Family(base.Family):
    architecture = InternVLForConditionalGeneration
    image_processors = {"GotOcr2ImageProcessor": grid_tiles}
    tiny_tokenizer = chatml(TOKENS, "<IMG_CONTEXT>\n")

    @classmethod
    def tiny(cls, seed: int = 0) -> Family:
        images = GotOcr2ImageProcessorPil(size={"height": 24, "width": 24}, max_patches=4)
        processor = cls.tiny_processor(images, image_seq_length=9)
        return cls.from_config(
            processor,
            seed,
            vision_config=InternVLVisionConfig(**tiny_model.VISION, image_size=24, patch_size=4, use_qk_norm=True),
            text_config=Qwen2Config(**tiny_model.sizes(processor)),
            image_token_id=processor.image_token_id,
            image_seq_length=9,
        )

    @property
    def bucket(self) -> base.Size:
        """Any size; the default is 2 x 2 tiles."""
        return self.image_size or (2 * self._edge[0], 2 * self._edge[1])

    @property
    def grids(self) -> tuple[base.Size, ...]:
        if self.model.config.vision_feature_select_strategy != "default":
            raise BadModel("the class token must be left out: set vision_feature_select_strategy to 'default'")
        rows, columns = (side // self._factor for side in self._patches)
        return ((rows, columns),) * len(self.preprocess.tiles)

    @property
    def pixels(self) -> tuple[int, ...]:
        return len(self.grids), 3, *self._edge

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        refuse_downsampling(grid)
        layer = self.model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise BadModel(f"vision_feature_layer {layer} must be one layer; correct it in config.json")
        feature_layers = () if layer == -1 else (layer,)  # transformers reads layer -1 after the last norm
        encoder = VisionEncoder(self.model.model.vision_tower, feature_layers, 1, reads)
        return Tiles(PixelShuffle(encoder, self._patches, self._factor, reads))

    @property
    def dimensions(self) -> Dimensions:
        width = self.model.model.multi_modal_projector.linear_1.in_features
        return pieces.dimensions(self.model.config.text_config, width)

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        return {"input_ids": input_ids, "pixel_values": torch.from_numpy(pixel_values).flatten(0, 1)}

    @property
    def _edge(self) -> base.Size:
        height, width = self.vision_config.image_size
        return height, width

    @property
    def _patches(self) -> base.Size:
        """Rows and columns of patches in a tile."""
        rows, columns = (edge // patch for edge, patch in zip(self._edge, self.vision_config.patch_size, strict=True))
        return rows, columns

    @property
    def _factor(self) -> int:
        return int(1 / self.model.config.downsample_ratio)
