# SPDX-License-Identifier: Apache-2.0
"""Points spread evenly over the token grid: constants, the same for every image ("spatial initialization").

arXiv 2505.22038, equation 11.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PATTERNS = ("manhattan", "euclidean", "lattice")


def spatial_points(pattern: str, grid: tuple[int, int], count: int) -> tuple[int, ...]:
    """Return `count` raster indices in the order of farthest-point sampling: the first are spread evenly too."""
    if pattern != "lattice":
        return farthest_points(grid, count, pattern)
    return farthest_points(grid, count, pattern, among=farthest_points(grid, count, pattern, lattice(grid, count)))


def farthest_points(
    grid: tuple[int, int], count: int, pattern: str, start: Sequence[int] = (), among: Sequence[int] | None = None
) -> tuple[int, ...]:
    """Return `start`, or the first point, and then greedily the farthest points on an h x w grid.

    Ties go to the lower index. `among` are the indices of the grid to choose from (None: all).
    """
    y, x = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    nearest: NDArray[np.int64] = np.full(y.shape, np.iinfo(np.int64).max)
    if among is not None:
        nearest[np.setdiff1d(np.arange(y.size), among)] = -1
    points: list[int] = []
    while len(points) < min(count, y.size):
        pick = start[len(points)] if len(points) < len(start) else int(nearest.argmax())
        points.append(pick)
        dy, dx = np.abs(y - y[pick]), np.abs(x - x[pick])
        # Squared Euclidean distances have the same order as the distances, and are exact.
        nearest = np.minimum(nearest, dy * dy + dx * dx if pattern == "euclidean" else dy + dx)
    return tuple(points)


def lattice(grid: tuple[int, int], count: int) -> tuple[int, ...]:
    """Return an even lattice of at most `count` points; 144 points of 24 x 24 are every second row and column."""
    height, width = grid
    rows, columns = lattice_size(grid, count)
    return tuple(i * height // rows * width + j * width // columns for i in range(rows) for j in range(columns))


def centered_lattice(grid: tuple[int, int], count: int) -> tuple[int, ...]:
    """Return `lattice` with every point in the middle of its cell instead of the corner."""
    height, width = grid
    rows, columns = lattice_size(grid, count)
    return tuple(
        (2 * i + 1) * height // (2 * rows) * width + (2 * j + 1) * width // (2 * columns)
        for i in range(rows)
        for j in range(columns)
    )


def lattice_size(grid: tuple[int, int], count: int) -> tuple[int, int]:
    """Return rows and columns of a lattice of at most `count` points, about equally spaced in both directions."""
    height, width = grid
    rows = min(max(round((count * height / width) ** 0.5), 1), height, count)
    return rows, min(count // rows, width) if rows else 0
