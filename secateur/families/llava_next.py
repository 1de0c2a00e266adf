# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT (1.6): LLaVA with a view of the whole image and tiles of a canvas that suits the image's shape.

Liu et al., "LLaVA-NeXT: Improved reasoning, OCR, and world knowledge", 2024.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextForConditionalGeneration, PreTrainedModel
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from secateur.bundle.layout import Dimensions, View
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import PARTS, TinyTokenizer
from secateur.families import base, llava
from secateur.vision import anyres
from secateur.vision.preprocessing import canvas_tiles
from secateur.vision.tiles import refuse_downsampling

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}"
    + PARTS.replace("IMAGE", "")
    + "{{ eos_token }}{% elif m['role'] == 'user' %}[INST] "
    + PARTS.replace("IMAGE", "<image>\n")
    + " [/INST]{% else %}<<SYS>>\n"
    + PARTS.replace("IMAGE", "")
    + "\n<</SYS>>\n{% endif %}{% endfor %}"
)


class Family(llava.Family):
    """LLaVA-NeXT, and the base of LLaVA-OneVision: images of any size; the bucket fixes their tiles."""

    architecture: ClassVar[type[PreTrainedModel]] = LlavaNextForConditionalGeneration
    image_processors = {"LlavaNextImageProcessor": canvas_tiles}
    tiny_tokenizer = TinyTokenizer(
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
        canvases = [[18, 36], [36, 18], [36, 36], [54, 18], [18, 54]]
        processor = cls.tiny_processor(
            LlavaNextImageProcessorPil(
                size={"shortest_edge": 18}, crop_size={"height": 18, "width": 18}, image_grid_pinpoints=canvases
            ),
            patch_size=6,
            vision_feature_select_strategy="default",
            num_additional_image_tokens=1,
        )
        return cls.from_config(
            processor,
            seed,
            vision_config=CLIPVisionConfig(**tiny_model.VISION, image_size=18, patch_size=6),
            text_config=LlamaConfig(**tiny_model.sizes(processor)),
            image_token_index=processor.image_token_id,
            image_grid_pinpoints=canvases,
        )

    @property
    def bucket(self) -> base.Size:
        """Any size; the default is the canvas nearest to 2 x 2 tiles."""
        if self.image_size is not None:
            return self.image_size
        edge, canvases = self.vision_config.image_size, self.model.config.image_grid_pinpoints
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
        pinpoints = self.model.config.image_grid_pinpoints
        return anyres.arrangement(size, pinpoints, self.vision_config.image_size, self._patches[0])

    @property
    def grids(self) -> tuple[base.Size, ...]:
        return tuple(view.grid for view in self.views)

    @property
    def views(self) -> tuple[View, ...]:
        return self.arrangement.views

    @property
    def pixels(self) -> tuple[int, ...]:
        return self.arrangement.tiles, 3, *self._edges

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        refuse_downsampling(grid)
        return anyres.AnyRes(self._encoder(reads), self.arrangement, reads)

    def own_projector(self) -> nn.Module:
        return anyres.AnyResProjector(self.model.model.multi_modal_projector, self.model.model.image_newline)

    @property
    def dimensions(self) -> Dimensions:
        own = super().dimensions
        return replace(own, vision_width=own.vision_width + 1)  # one more for the newline flag

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        sizes = torch.tensor([self.bucket] * len(pixel_values))
        return super().inputs(input_ids, pixel_values) | {"image_sizes": sizes}
