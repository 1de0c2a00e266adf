# SPDX-License-Identifier: Apache-2.0
"""LLaVA-OneVision: SigLIP and Qwen2, tiles and newlines as in LLaVA-NeXT, on canvases of up to 6 x 6 tiles.

If a canvas has too many tiles, transformers shrinks the joined grid after the projector (anyres_max_9). That mixes
rows, so no gate could be placed before the projector, and such a size is refused. Li et al.,
"LLaVA-OneVision: Easy Visual Task Transfer", arXiv 2408.03326.

If a prompt has several images, each is one tile, whatever its size.
"""

from __future__ import annotations

import math
import re
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LlavaOnevisionForConditionalGeneration, Qwen2Config, SiglipVisionConfig
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

from secateur.bundle.preprocess import Preprocess
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import chatml
from secateur.errors import BadModel
from secateur.families import llava_next
from secateur.vision import anyres
from secateur.vision.native_sizes import shown
from secateur.vision.preprocessing import canvas_tiles, preprocess, square_view

SHRINKS_ABOVE = 1.1


class Family(llava_next.Family):
    architecture = LlavaOnevisionForConditionalGeneration
    image_processors = {"LlavaOnevisionImageProcessor": canvas_tiles}
    tiny_tokenizer = chatml({"image_token": "<image>", "video_token": "<video>"}, "<image>\n")

    @classmethod
    def tiny(cls, seed: int = 0) -> Family:
        canvases = [[18 * rows, 18 * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)]
        processor = cls.tiny_processor(
            LlavaOnevisionImageProcessorPil(size={"height": 18, "width": 18}, image_grid_pinpoints=canvases),
            num_image_tokens=9,
            vision_feature_select_strategy="full",
            vision_aspect_ratio="anyres_max_4",
        )
        return cls.from_config(
            processor,
            seed,
            vision_config=SiglipVisionConfig(**tiny_model.VISION, image_size=18, patch_size=6, vision_use_head=False),
            text_config=Qwen2Config(**tiny_model.sizes(processor)),
            image_token_index=processor.image_token_id,
            video_token_index=processor.video_token_id,
            image_grid_pinpoints=canvases,
            vision_aspect_ratio="anyres_max_4",
        )

    @property
    def arrangement(self) -> anyres.Arrangement:
        if self.images > 1:
            return anyres.single(self._patches[0])
        arranged = self._arranged(self.bucket)
        if self._shrinks(arranged):
            fit = [size for size in self.model.config.image_grid_pinpoints if not self._shrinks(self._arranged(size))]
            raise BadModel(
                f"an image of {shown(self.bucket)} has more than the {self._most} tiles that this model shows in full, "
                "and shrinking them after the projector is not supported; "
                f"use {shown(select_best_resolution(self.bucket, fit))}"
            )
        return arranged

    @cached_property
    def preprocess(self) -> Preprocess:
        kinds = dict.fromkeys(self.image_processors, square_view) if self.images > 1 else self.image_processors
        return preprocess(self.processor, kinds, self.bucket, self.fit)

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        return super().inputs(input_ids, pixel_values) | {"batch_num_images": torch.tensor([len(pixel_values)])}

    def _shrinks(self, arranged: anyres.Arrangement) -> bool:
        """Return whether transformers would interpolate the joined grid."""
        tile = arranged.views[0].tokens
        patches = sum(row >= 0 for row in arranged.rows) - tile
        return math.sqrt(patches / (self._most * tile)) > SHRINKS_ABOVE

    @property
    def _most(self) -> int:
        """Highest number of tiles shown in full: the number in anyres_max_9."""
        found = re.fullmatch(r"anyres_max_(\d+)", str(self.model.config.vision_aspect_ratio))
        if found is None:
            raise BadModel(
                f"vision_aspect_ratio '{self.model.config.vision_aspect_ratio}' in config.json is not supported; "
                "supported: anyres_max_N, with N the most tiles that are shown in full"
            )
        return int(found[1])
