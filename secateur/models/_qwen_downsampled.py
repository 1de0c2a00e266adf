# SPDX-License-Identifier: Apache-2.0
"""A Qwen-VL vision encoder that looks at a smaller image: it takes any grid, so only the pixels are resized."""

from __future__ import annotations

from torch import Tensor, matmul, nn
from transformers import PreTrainedModel

from secateur.errors import BadModel, BadSchedule
from secateur.models._downsampled import centres, resize_matrix
from secateur.models._qwen_vision import Vision


class Downsampled(nn.Module):
    """Features of `grid` tokens of the resized image, and the place of each on the full grid.

    Args:
        tower: the vision encoder of a Qwen2-VL or Qwen2.5-VL.
        full, grid: rows and columns of tokens of the full and of the smaller image.

    Raises:
        BadModel: the encoder gives DeepStack planes, which the graph of a smaller image has no outputs for.
        BadSchedule: the grid is larger than that of the full image.
    """

    rows: Tensor
    columns: Tensor
    places: Tensor

    def __init__(self, tower: PreTrainedModel, full: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        if not all(1 <= side <= whole for side, whole in zip(grid, full, strict=True)):
            raise BadSchedule(
                f"a downsampled image of {grid[0]} x {grid[1]} tokens must be within 1 x 1 and {full[0]} x {full[1]}"
            )
        self.vision = Vision(tower, grid)
        if self.vision.planes:
            raise BadModel(
                f"the vision encoder '{tower.config.model_type}' gives DeepStack planes, so it cannot take a smaller "
                "image here; use another method"
            )
        edge = tower.config.patch_size * tower.config.spatial_merge_size
        for name, side, whole in zip(("rows", "columns"), grid, full, strict=True):
            self.register_buffer(name, resize_matrix(whole * edge, side * edge, whole * edge), persistent=False)
        self.register_buffer("places", centres(full, grid), persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """pixel_values [B, 3, h, w] fp32 of the full image -> features [B, k, p * Dv], vision_index [B, k] int64."""
        pixels = matmul(matmul(self.rows, pixel_values), self.columns.transpose(0, 1))
        features: Tensor = self.vision(pixels)
        return features, self.places.expand(features.shape[0], -1)
