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
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

from secateur.bundle.layout import Dimensions
from secateur.checkpoints import tiny_model
from secateur.checkpoints.tiny_model import Form, random_model
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
    form = Form(
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
        processor: Any = tiny_model.processor("paligemma", cls.form, images)
        sizes = tiny_model.sizes(processor) | {"num_key_value_heads": 1, "head_dim": 16}
        vision = SiglipVisionConfig(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=24,
            patch_size=4,
            vision_use_head=False,
        )
        config = PaliGemmaConfig(
            vision_config=vision,
            text_config=kind(**sizes | text),
            image_token_index=processor.image_token_id,
            projection_dim=48,
            hidden_size=48,
        )
        return cls(random_model(cls.architecture, config, seed), processor, "random")

    @property
    def bucket(self) -> base.Size:
        edge = self._tower.config.image_size
        return only(self.image_size, (edge, edge))

    @property
    def grids(self) -> tuple[base.Size, ...]:
        side = self._tower.config.image_size // self._tower.config.patch_size
        return ((side, side),)

    @property
    def pixels(self) -> tuple[int, ...]:
        return (3, *self.bucket)

    @property
    def _tower(self) -> Any:
        return self.model.model.vision_tower

    def vision(self, reads: tuple[str, ...] = (), grid: base.Size | None = None) -> nn.Module:
        return VisionEncoder(self._tower, (), 0, reads) if grid is None else SmallTower(self._tower, (-1,), 0, grid)

    def projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    @property
    def decoder(self) -> Decoder:
        text: Any = self.model.model.language_model
        cap = getattr(text.config, "final_logit_softcapping", None)
        head = self.model.lm_head if cap is None else Capped(self.model.lm_head, cap)
        return pieces.decoder(text, head, bidirectional=True)

    @property
    def dimensions(self) -> Dimensions:
        return pieces.dimensions(
            self.model.config.text_config, self._tower.config.hidden_size, class_token=False, bidirectional=True
        )

    @property
    def patch_key_width(self) -> int:
        return int(self._tower.config.hidden_size // self._tower.config.num_attention_heads)

    def position_ids(self, input_ids: Tensor) -> Tensor:
        """Positions that count from 1."""
        return torch.arange(1, input_ids.shape[1] + 1)[None]

    def inputs(self, input_ids: Tensor, pixel_values: NDArray[np.float32]) -> dict[str, Tensor]:
        """Include token types: rows of the prompt have type 0 and attend to each other; generated rows have type 1."""
        return {
            "input_ids": input_ids,
            "pixel_values": torch.from_numpy(pixel_values),
            "token_type_ids": torch.zeros_like(input_ids),
        }


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
