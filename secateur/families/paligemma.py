# SPDX-License-Identifier: Apache-2.0
"""PaliGemma and PaliGemma 2: SigLIP, a linear projector, and a Gemma decoder that reads the prompt in both directions.

Beyer et al., "PaliGemma: A versatile 3B VLM for transfer", arXiv 2407.07726; Steiner et al., arXiv 2412.03555.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import (
    Gemma2Config,
    GemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import TinyTokenizer
from secateur.decoder import pieces
from secateur.decoder.pieces import Decoder
from secateur.families import base
from secateur.vision.downsampled import Downsampled
from secateur.vision.encoder import VisionEncoder
from secateur.vision.native_sizes import only
from secateur.vision.preprocessing import one_view


class Family(base.Family):
    architecture = PaliGemmaForConditionalGeneration
    has_template = False
    image_processors = {"SiglipImageProcessor": one_view}
    tiny_tokenizer = TinyTokenizer(
        "bare",
        ("<pad>", "<eos>", "<bos>", "<unk>", "<image>"),
        None,
        bos="<bos>",
        eos="<eos>",
        pad="<pad>",
        unk="<unk>",
        named={"image_token": "<image>"},
    )

    @classmethod
    def tiny(cls, seed: int = 0) -> base.Family:
        return cls.random(GemmaConfig, seed)

    @classmethod
    def random(cls, kind: type[GemmaConfig | Gemma2Config], seed: int = 0, **text: Any) -> base.Family:
        """Return a small model with random weights; `text` are further settings of its decoder."""
        images = SiglipImageProcessorPil(size={"height": 24, "width": 24}, image_seq_length=36)
        processor = cls.tiny_processor(images)
        sizes = tiny_model.sizes(processor) | {"num_key_value_heads": 1, "head_dim": 16}
        return cls.from_config(
            processor,
            seed,
            vision_config=SiglipVisionConfig(**tiny_model.VISION, image_size=24, patch_size=4, vision_use_head=False),
            text_config=kind(**sizes | text),
            image_token_index=processor.image_token_id,
            projection_dim=48,
            hidden_size=48,
        )

    @property
    def bucket(self) -> base.Size:
        edge = self.vision_config.image_size
        return only(self.image_size, (edge, edge))

    @property
    def grids(self) -> tuple[base.Size, ...]:
        side = self.vision_config.image_size // self.vision_config.patch_size
        return ((side, side),)

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        tower = self.model.model.vision_tower
        return VisionEncoder(tower, (), 0, reads) if grid is None else SmallTower(tower, (-1,), 0, grid)

    @property
    def decoder(self) -> Decoder:
        text: Any = self.model.model.language_model
        cap = getattr(text.config, "final_logit_softcapping", None)
        head = self.model.lm_head if cap is None else Capped(self.model.lm_head, cap)
        return pieces.decoder(text, head, bidirectional=True)

    @property
    def dimensions(self) -> Dimensions:
        width = self.vision_config.hidden_size
        return pieces.dimensions(self.model.config.text_config, width, class_token=False, bidirectional=True)

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Positions that count from 1."""
        return torch.arange(1, input_ids.shape[1] + 1)[None]

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        """Include token types: rows of the prompt have type 0 and attend to each other; generated rows have type 1."""
        return super().inputs(input_ids, pixel_values) | {"token_type_ids": torch.zeros_like(input_ids)}


class SmallTower(Downsampled):
    """SigLIP on a downsampled image, including its last norm."""

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        features, index = super().forward(pixel_values)
        return self.tower.get_submodule("post_layernorm")(features), index


class Capped(nn.Module):
    """Head with logits soft-capped to -cap .. cap (Gemma 2)."""

    def __init__(self, head: nn.Module, cap: float) -> None:
        super().__init__()
        self.head, self.cap = head, cap

    def forward(self, rows: Tensor) -> Tensor:
        """rows [..., D] -> logits [..., V]."""
        logits: Tensor = self.head(rows)
        return torch.tanh(logits / self.cap) * self.cap
