# SPDX-License-Identifier: Apache-2.0
"""Downsampling, the baseline of VTC-Bench, arXiv 2510.07143.

Selects no tokens: the encoder gets a smaller image, which gives fewer tokens and a faster encoder.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

from secateur.bundle.schedule import Gate, Schedule
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, front
from secateur.selection.selector import GateSite, Selector
from secateur.selection.statistics import Statistics

SHARE = 0.25
DISTORTION = 1.5  # largest ratio between the shrink factors of the two axes


@dataclass(frozen=True)
class Grid:
    """Constants of one gate: rows and columns of the vision tokens of the smaller image."""

    grid: tuple[int, int] | None = None


@dataclass(frozen=True)
class Method(base.Method):
    """Makes the image smaller; no tokens are chosen and nothing is measured."""

    constants = Grid

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Choose the grid of patches whose count is nearest to the budget.

        Raises:
            BadSchedule: the request cannot be met, or is 0 tokens.
        """
        model = statistics.model
        wanted = front(request, statistics.dimensions.layers, model.vision_tokens, SHARE)
        if wanted == 0:
            raise BadSchedule("keep 0 leaves no image to look at; downsampling keeps at least 1 token")
        rows, columns = nearest_grid(wanted, statistics.layout.grid)
        gate = Gate(0, rows * columns, "downsample", {"grid": [rows, columns]})
        return self.schedule(statistics, (gate,), {"tokens_asked": wanted})

    @classmethod
    def selector(cls, site: GateSite, constants: Grid) -> Selector:
        raise BadSchedule(f"a downsample gate chooses no tokens; its kind must be 'downsample', not '{site.gate.kind}'")


def nearest_grid(wanted: int, full: tuple[int, int]) -> tuple[int, int]:
    """Return rows and columns within `full` whose product is nearest to `wanted`.

    One axis shrinks at most DISTORTION times as much as the other. Ties: the least distorted grid, then more
    tokens, then more rows.
    """

    def distortion(grid: tuple[int, int]) -> float:
        ratio = grid[0] * full[1] / (grid[1] * full[0])
        return max(ratio, 1 / ratio)

    grids = [g for g in product(range(1, full[0] + 1), range(1, full[1] + 1)) if distortion(g) <= DISTORTION]
    return min(grids, key=lambda g: (abs(g[0] * g[1] - wanted), round(distortion(g), 9), -g[0] * g[1], -g[0]))
