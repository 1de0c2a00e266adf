# SPDX-License-Identifier: Apache-2.0
"""Focal Pruning (FoPru), arXiv 2411.14164.

Prunes once, after the vision encoder: the patches that get most attention from the other patches in the second-to-last
layer stay, one by one ("rank") or as whole rows of the image ("row"). No text is read.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from secateur.bundle.schedule import Gate, Schedule
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, front
from secateur.selection.constants import check_layer, one_of
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import best

SHARE = 0.25  # the ratio that the paper's headline cites
MEASURED = -2  # the layer of Statistics.encoder_variance


@dataclass(frozen=True)
class Focus:
    """Constants of one gate; see the options of `Method`."""

    strategy: str = "rank"
    score_layer: int = -2
    row_fill: str = "none"
    direction: str = "received"

    def __post_init__(self) -> None:
        one_of("strategy", self.strategy, ("rank", "row"))
        check_layer(self.score_layer)
        one_of("row_fill", self.row_fill, ("none", "rank"))
        one_of("direction", self.direction, ("received", "auto"))
        if self.row_fill == "rank" and self.strategy == "rank":
            raise BadSchedule("row_fill 'rank' belongs to the strategy 'row'; use --strategy row")


@dataclass(frozen=True)
class Method(base.Method):
    """Options of FoPru."""

    constants = Focus
    statistics: ClassVar[frozenset[str]] = frozenset({"encoder_variance"})

    strategy: Literal["rank", "row"] = field(
        default="rank", metadata={"help": "keep the best tokens, or the best whole rows of the image"}
    )
    score_layer: int = field(
        default=-2, metadata={"help": "encoder layer whose attention scores, from the end: -1 is the last"}
    )
    row_fill: Literal["none", "rank"] = field(
        default="none",
        metadata={"help": "strategy row: how to use the part of a budget that does not fill a row (not in the paper)"},
    )
    direction: Literal["received", "auto"] = field(
        default="received",
        metadata={"help": "score by the attention received, or by received or given, whichever varies more"},
    )

    def __post_init__(self) -> None:
        self._focus()

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate. A share of the tokens is rounded down, as in the paper; a compression is met most closely."""
        tokens, columns = statistics.model.vision_tokens, statistics.layout.grid[1]
        wanted = front(request, statistics.dimensions.layers, tokens, SHARE)
        share = request.keep[0] if request.keep is not None else SHARE
        if request.compression is None and 0 < share <= 1:
            wanted = max(1, math.floor(share * tokens + 1e-9))
        report = self._measured(statistics) | {"tokens_asked": wanted}
        keep = wanted
        if self.strategy == "row":
            if 0 < wanted < columns:
                raise BadSchedule(
                    f"keep {wanted} is less than one row of {columns} tokens; keep more or use --strategy rank"
                )
            if self.row_fill == "none":
                keep = wanted // columns * columns
        return self.schedule(statistics, (Gate(0, keep, "vision", asdict(self._focus())),), report)

    def _focus(self) -> Focus:
        return Focus(self.strategy, self.score_layer, self.row_fill, self.direction)

    def _measured(self, statistics: Statistics) -> Json:
        """Check the direction on the calibration images, and return what was measured.

        Raises:
            BadSchedule: on one of them the attention given varies at least as much as the attention received.
        """
        variance = statistics.encoder_variance
        if variance.size == 0:
            return {"samples": 0, "note": "the direction was not checked: no image was measured"}
        report: Json = {
            "samples": len(variance),
            "variance_received": [float(f"{value:.4g}") for value in variance[:, 0]],
            "variance_given": [float(f"{value:.4g}") for value in variance[:, 1]],
        }
        if self.score_layer != MEASURED:
            return report | {"note": f"measured at layer {MEASURED}, not at the score layer {self.score_layer}"}
        against = int((variance[:, 0] <= variance[:, 1]).sum())
        if against and self.direction == "received":
            raise BadSchedule(
                f"attention received varies no more than attention given on {against} of {len(variance)} calibration "
                "images, so it is a weak score; use --direction auto"
            )
        return report

    @classmethod
    def selector(cls, site: GateSite, constants: Focus) -> Selector:
        keep = site.gate.keep
        if constants.strategy == "row":
            rows, columns = site.grid
            if site.vision_tokens != rows * columns:
                raise BadSchedule(
                    f"a fopru gate by rows needs the whole image, {rows * columns} tokens, not {site.vision_tokens}"
                )
            if constants.row_fill == "none" and keep % columns:
                raise BadSchedule(f"keep {keep} of a fopru gate is not a whole number of rows of {columns} tokens")
        grid = site.grid if constants.strategy == "row" else None
        return FocalSelector(keep, constants.score_layer, constants.direction == "auto", grid)


class FocalSelector(Selector):
    """Keeps the best tokens, or with a `grid` those of the best rows, and the best others up to `keep`."""

    def __init__(self, keep: int, layer: int, auto: bool, grid: tuple[int, int] | None) -> None:
        super().__init__()
        self.keep = keep
        self.grid = grid
        self.reads = (f"received.{layer}", f"given.{layer}") if auto else (f"received.{layer}",)

    def forward(self, rows: GateInputs) -> Tensor:
        score = self._score(rows)
        if self.grid is None:
            return best(score, self.keep)
        height, width = self.grid
        table = score.reshape(-1, height, width)
        lines = best(table.sum(dim=2), self.keep // width)
        if self.keep % width == 0:
            return (lines[:, :, None] * width + torch.arange(width, device=score.device)).reshape(-1, self.keep)
        chosen = (lines[:, :, None] == torch.arange(height, device=score.device)).any(dim=1)
        return best(torch.where(chosen[:, :, None], torch.inf, table).reshape(-1, height * width), self.keep)

    def _score(self, rows: GateInputs) -> Tensor:
        """Return the score [B, N] fp32: attention received, or in each image the direction of larger variance."""
        received = rows.read[self.reads[0]].float()
        if len(self.reads) == 1:
            return received
        given = rows.read[self.reads[1]].float()
        return torch.where(_variance(received) > _variance(given), received, given)


def _variance(score: Tensor) -> Tensor:
    """Return the variance [B, 1] of [B, N]. Not torch.var, which exports with shapes computed in the graph."""
    centered = score - score.mean(dim=1, keepdim=True)
    return (centered * centered).mean(dim=1, keepdim=True)
