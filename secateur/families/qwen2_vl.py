# SPDX-License-Identifier: Apache-2.0
"""Qwen2-VL: a ViT for images of any size with 2-D rotary positions, a patch merger, and a Qwen2 decoder with M-RoPE.

Wang et al., "Qwen2-VL: Enhancing Vision-Language Model's Perception of the World at Any Resolution", arXiv 2409.12191.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import TinyTokenizer, chatml
from secateur.decoder import pieces
from secateur.decoder.pieces import Decoder, MRope
from secateur.families import base
from secateur.vision.native_sizes import check_native
from secateur.vision.preprocessing import native_view
from secateur.vision.qwen import QwenDownsampled, QwenProjector, QwenVisionEncoder

EDGE = 448
"""Edge in pixels of a square image; the processor resizes it to the default bucket."""
DEFAULT_SYSTEM = (
    "{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)


def tokenizer(system: str) -> TinyTokenizer:
    """Return the tokenizer of a Qwen-VL model; `system` is the template of its default system prompt."""
    named = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    image = "<|vision_start|><|image_pad|><|vision_end|>"
    return chatml(named, image, system, more=("<|vision_start|>", "<|vision_end|>"))


class Family(base.Family):
    """Qwen2-VL, and the base of Qwen2.5-VL and Qwen3-VL.

    The processor resizes an image of any size within its pixel limits to whole vision tokens and adds no padding, so a
    bucket is any size of whole tokens. A token is a square of patches that the merger joins. Positions have three axes
    (M-RoPE): time, row and column for an image; all three are equal for text.
    """

    architecture: ClassVar[type[PreTrainedModel]] = Qwen2VLForConditionalGeneration
    image_processors = {"Qwen2VLImageProcessor": native_view}
    tiny_tokenizer = tokenizer(DEFAULT_SYSTEM)
    tiny_vision: ClassVar[dict[str, Any]] = {"depth": 3, "embed_dim": 32, "hidden_size": 48, "mlp_ratio": 2}
    tiny_text: ClassVar[dict[str, Any]] = {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]}
    }
    tied: ClassVar[bool] = True
    """Whether the tiny model's head is its embedding."""

    @classmethod
    def tiny(cls, seed: int = 0) -> base.Family:
        images = Qwen2VLImageProcessorPil(patch_size=4, size={"shortest_edge": 64, "longest_edge": 2400})
        processor = cls.tiny_processor(images)
        vision = {"hidden_size": 32, "num_heads": 2, "patch_size": 4, "out_hidden_size": 48, **cls.tiny_vision}
        return cls.from_config(
            processor,
            seed,
            vision_config=vision,
            text_config=tiny_model.sizes(processor) | cls.tiny_text,
            image_token_id=processor.image_token_id,
            video_token_id=processor.video_token_id,
            tie_word_embeddings=cls.tied,
        ).at((48, 40))

    @property
    def bucket(self) -> base.Size:
        if self.image_size is None:
            default: base.Size = smart_resize(EDGE, EDGE, self._edge, *self._limits)
            return default
        resizes = self.processor.image_processor.do_resize
        check_native(self.image_size, self._edge, self._limits if resizes else None)
        return self.image_size

    @property
    def grids(self) -> tuple[base.Size, ...]:
        height, width = self.bucket
        return ((height // self._edge, width // self._edge),)

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        if grid is None:
            return QwenVisionEncoder(self._tower, self.grids[0], reads)
        return QwenDownsampled(self._tower, self.grids[0], grid)

    def own_projector(self) -> nn.Module:
        return QwenProjector(self._tower.merger, self._tower.spatial_merge_size**2)

    @property
    def decoder(self) -> Decoder:
        text: Any = self.model.model.language_model
        rotary = MRope(text.rotary_emb)
        return Decoder(text.config, text.embed_tokens, text.layers, rotary, text.norm, self.model.lm_head)

    @property
    def dimensions(self) -> Dimensions:
        width = self._tower.patch_embed.proj.out_channels * self._tower.spatial_merge_size**2
        planes = len(getattr(self._tower.config, "deepstack_visual_indexes", ()))
        return pieces.dimensions(self.model.config.text_config, width, class_token=False, planes=planes)

    @property
    def patch_key_width(self) -> int:
        return int(self._tower.blocks[0].attn.head_dim)

    def position_ids(self, input_ids: Tensor) -> Tensor:
        images = self._images(input_ids)
        found: Tensor = self.model.model.get_rope_index(input_ids, **images)[0]
        return found[:, 0]

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        processor, config = self.processor.image_processor, self.model.config.vision_config
        rows = [
            processor.patchify(image, config.patch_size, config.spatial_merge_size, config.temporal_patch_size)[0]
            for image in pixel_values
        ]
        patches = torch.from_numpy(np.concatenate(rows))
        return {"input_ids": input_ids, "pixel_values": patches, **self._images(input_ids)}

    def _images(self, input_ids: Tensor) -> dict[str, Tensor]:
        """Return the image mask of the rows, and the grid of patches of each image."""
        mine = input_ids == self.image_token_id
        (rows, columns), merge = self.grids[0], self._tower.spatial_merge_size
        grid = torch.tensor([[1, rows * merge, columns * merge]])
        count = int(mine.sum()) // (rows * columns)
        return {"image_grid_thw": grid.repeat(count, 1), "mm_token_type_ids": mine.int()}

    @property
    def _tower(self) -> Any:
        return self.model.model.visual

    @property
    def _edge(self) -> int:
        """Edge of a token in pixels."""
        return int(self.model.config.vision_config.patch_size * self.model.config.vision_config.spatial_merge_size)

    @property
    def _limits(self) -> tuple[int, int]:
        """Lowest and highest number of pixels that the processor does not resize."""
        size = self.processor.image_processor.size
        return int(size["shortest_edge"]), int(size["longest_edge"])
