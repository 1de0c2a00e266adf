# SPDX-License-Identifier: Apache-2.0
"""Uniform stride or 2-D lattice: the same evenly spread slots for every image, so a constant. A control like random."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secateur.bundle.schedule import Schedule
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import one_of
from secateur.selection.selector import Fixed, GateSite, Selector
from secateur.selection.spatial import centered_lattice, farthest_points
from secateur.selection.statistics import Statistics

SHARE = 0.25


@dataclass(frozen=True)
class Pattern:
    """Constants of one gate: a "stride" in raster order, or points of the token "grid"."""

    pattern: str = "stride"

    def __post_init__(self) -> None:
        one_of("pattern", self.pattern, ("stride", "grid"))


@dataclass(frozen=True)
class Method(base.Method):
    """Options of the stride."""

    constants = Pattern

    pattern: Literal["stride", "grid"] = field(
        default="stride", metadata={"help": "even in raster order, or an even lattice of rows and columns"}
    )

    def __post_init__(self) -> None:
        Pattern(self.pattern)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate before the decoder unless the request names layers."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        placed = plan(request, depth, tokens, (0,), (SHARE,), earliest=0)
        for before, keep in zip((tokens, *placed.counts), placed.counts, strict=False):
            _check(self.pattern, statistics.layout.grid, before, keep)
        return self.schedule(statistics, placed.gates({"pattern": self.pattern}))

    @classmethod
    def selector(cls, site: GateSite, constants: Pattern) -> Selector:
        pattern, keep, tokens = constants.pattern, site.gate.keep, site.vision_tokens
        _check(pattern, site.grid, tokens, keep)
        return Fixed(strided(tokens, keep) if pattern == "stride" else latticed(site.grid, keep))


def _check(pattern: str, grid: tuple[int, int], tokens: int, keep: int) -> None:
    if pattern == "grid" and keep not in (0, tokens) and tokens != grid[0] * grid[1]:
        raise BadSchedule(
            f"pattern 'grid' needs all tokens of the {grid[0]} x {grid[1]} grid, not {tokens} of them; "
            "use one gate or pattern 'stride'"
        )


def strided(tokens: int, keep: int) -> tuple[int, ...]:
    """Return the middles of `keep` equal parts of the raster: floor((i + 1/2) * tokens / keep)."""
    return tuple((2 * i + 1) * tokens // (2 * keep) for i in range(keep))


def latticed(grid: tuple[int, int], keep: int) -> tuple[int, ...]:
    """Return an even lattice of at most `keep` points, filled up with the points farthest from all others."""
    return farthest_points(grid, keep, "euclidean", centered_lattice(grid, keep))
