# SPDX-License-Identifier: Apache-2.0
"""Vision encoder of images in several tiles: each tile is encoded alone, and their tokens are concatenated."""

from __future__ import annotations

from torch import Tensor, nn


class Tiles(nn.Module):
    """`vision` over every tile of an image.

    Args:
        vision: pixel_values [B, 3, h, w] -> features [B, n, Dv], and scores [B, n, ...] if any.
    """

    def __init__(self, vision: nn.Module) -> None:
        super().__init__()
        self.vision = vision

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """pixel_values [B, T, 3, h, w] fp32 -> features [B, T * n, Dv], tile by tile, and the scores if any."""
        tiles = pixel_values.shape[1]
        seen = self.vision(pixel_values.flatten(0, 1))
        if not isinstance(seen, tuple):
            return _joined(seen, tiles)
        return tuple(_joined(x, tiles) for x in seen)


def _joined(rows: Tensor, tiles: int) -> Tensor:
    """[B * T, n, ...] -> [B, T * n, ...]."""
    return rows.reshape(-1, tiles * rows.shape[1], *rows.shape[2:])
