# SPDX-License-Identifier: Apache-2.0
"""Vision encoder on a downsampled image: fewer patches, and less work in the encoder.

Everything that depends on the size is a constant: one matrix per axis resizes the pixels, and the position embeddings
are interpolated by transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from secateur.checkpoints.streaming import held, value
from secateur.errors import BadModel, BadSchedule
from secateur.vision.encoder import check_features

TOWERS = ("clip_vision_model", "siglip_vision_model")


class Downsampled(nn.Module):
    """Features of `grid` patches of the downsampled image, and the place of each on the full grid.

    Args:
        tower: a CLIP or SigLIP vision encoder.
        feature_layers, class_tokens: as in `VisionEncoder`.
        grid: rows and columns of the smaller image, each from 1 to that of the full image.

    Raises:
        BadModel: the encoder is of another kind.
        BadSchedule: the grid is larger than that of the full image.
    """

    rows: Tensor
    columns: Tensor
    positions: Tensor
    centres: Tensor

    def __init__(
        self, tower: PreTrainedModel, feature_layers: Sequence[int], class_tokens: int, grid: tuple[int, int]
    ) -> None:
        super().__init__()
        config = tower.config
        if config.model_type not in TOWERS:
            raise BadModel(
                f"the vision encoder '{config.model_type}' cannot take a smaller image here "
                f"(supported: {', '.join(TOWERS)}); use another method"
            )
        edge, patch = config.image_size, config.patch_size
        full = edge // patch
        if not all(1 <= side <= full for side in grid):
            raise BadSchedule(
                f"a downsampled image of {grid[0]} x {grid[1]} patches must be within 1 x 1 and {full} x {full}"
            )
        self.tower = tower
        self.feature_layers = tuple(feature_layers)
        check_features(self.feature_layers, config.num_hidden_layers)
        self.class_tokens = class_tokens
        for name, side in zip(("rows", "columns"), grid, strict=True):
            self.register_buffer(name, resize_matrix(full * patch, side * patch, edge))
        embeddings: Any = tower.embeddings
        with held(embeddings):
            self.register_buffer("positions", _positions(embeddings, class_tokens, grid))
        self.register_buffer("centres", centres((full, full), grid))

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """pixel_values [B, 3, h, w] fp32 of the full image -> features [B, k, Dv], vision_index [B, k] int64."""
        tower: Any = self.tower
        pixels = torch.matmul(torch.matmul(self.rows, pixel_values), self.columns.transpose(0, 1))
        patches: Tensor = tower.embeddings.patch_embedding(pixels.to(next(tower.parameters()).dtype))
        rows = patches.flatten(2).transpose(1, 2)
        if self.class_tokens:
            # Its module does not run here, so its hook does not read it.
            first = value(tower.embeddings.class_embedding)
            rows = torch.cat([first.expand(rows.shape[0], 1, -1), rows], dim=1)
        rows = rows + self.positions
        if hasattr(tower, "pre_layrnorm"):
            rows = tower.pre_layrnorm(rows)
        states = [rows]
        for layer in tower.encoder.layers:
            states.append(layer(states[-1], None))
        features = torch.cat([states[layer][:, self.class_tokens :] for layer in self.feature_layers], dim=-1)
        return features, self.centres.expand(features.shape[0], -1)


def resize_matrix(covered: int, size: int, edge: int) -> Tensor:
    """Return [size, edge] fp32: antialiased bicubic resizing, as Pillow's, of the first `covered` of `edge` pixels.

    Pixels after the last full patch are ignored, as in the full encoder.
    """
    eye = torch.eye(covered)[None, None]
    matrix = F.interpolate(eye, size=(size, covered), mode="bicubic", antialias=True)[0, 0]
    return F.pad(matrix, (0, edge - covered)).contiguous()


def centres(full: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Return [rows * columns] int64, ascending: index of the full grid's cell at the center of each small cell."""
    rows, columns = (
        (2 * torch.arange(small) + 1) * whole // (2 * small) for whole, small in zip(full, grid, strict=True)
    )
    return (rows[:, None] * full[1] + columns).reshape(-1)


@torch.no_grad()
def _positions(embeddings: Any, class_tokens: int, grid: tuple[int, int]) -> Tensor:
    """Return [1, c + k, Dv], interpolated by transformers, which reads only the shape of the first argument."""
    weight = embeddings.position_embedding.weight
    like = weight.new_empty(1, class_tokens + grid[0] * grid[1], weight.shape[1])
    positions: Tensor = embeddings.interpolate_pos_encoding(like, *(side * embeddings.patch_size for side in grid))
    return positions.detach().clone()
