# SPDX-License-Identifier: Apache-2.0
"""Wrappers of vision encoders: images in several tiles, and pixel shuffle, which merges patches to vision tokens."""

from __future__ import annotations

from torch import Tensor, nn

from secateur.errors import BadModel


def refuse_downsampling(grid: tuple[int, int] | None) -> None:
    """Check that no downsampled image of `grid` patches is requested.

    Raises:
        BadModel: it is; images in several tiles have no such graph.
    """
    if grid is not None:
        raise BadModel(
            "an image of several tiles cannot be downsampled within the graph; export a smaller --image-size, "
            "which has fewer tiles, or use another method"
        )


class Tiles(nn.Module):
    """Vision encoder of an image in several tiles: each is encoded alone, and their tokens are concatenated.

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


def squares(rows: Tensor, grid: tuple[int, int], factor: int) -> Tensor:
    """Patches [B, r * c, ...] of `grid` in raster order -> [B, r * c / f^2, f^2, ...], squares in raster order."""
    r, c = (side // factor for side in grid)
    split = rows.reshape(-1, r, factor, c, factor, *rows.shape[2:])
    return split.transpose(2, 3).reshape(-1, r * c, factor * factor, *rows.shape[2:])


class PixelShuffle(nn.Module):
    """Vision encoder whose patches are merged: `factor` x `factor` neighbors are concatenated in raster order.

    So a projector works row by row, and a gate may be placed before it.

    Args:
        vision: pixel_values -> features [B, r * c, Dv], and the scores of `reads` if any.
        grid: r rows and c columns of patches.
        factor: patches of a token along an axis.
        reads: names of the scores; keys are averaged over the patches of a token, other scores are summed.

    Raises:
        BadModel: the grid cannot be divided into squares.
    """

    def __init__(self, vision: nn.Module, grid: tuple[int, int], factor: int, reads: tuple[str, ...] = ()) -> None:
        super().__init__()
        if any(side % factor for side in grid):
            raise BadModel(
                f"{grid[0]} x {grid[1]} patches cannot be divided into squares of {factor} x {factor}; "
                "choose another image size"
            )
        self.vision = vision
        self.grid = grid
        self.factor = factor
        self.means = tuple(name.startswith("patch_key") for name in reads)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """pixel_values -> features [B, r * c / f^2, f^2 * Dv], and the scores of those tokens if any."""
        seen = self.vision(pixel_values)
        features, *scores = seen if isinstance(seen, tuple) else (seen,)
        rows = squares(features, self.grid, self.factor).flatten(2)
        if not self.means:
            return rows
        merged = []
        for mean, score in zip(self.means, scores, strict=True):
            patches = squares(score, self.grid, self.factor)
            merged.append(patches.float().mean(dim=2).to(score.dtype) if mean else patches.sum(dim=2))
        return rows, *merged
