# SPDX-License-Identifier: Apache-2.0
"""Visual Tokens Withdrawal (VTW), arXiv 2405.05803, AAAI 2025: all vision tokens are removed at one decoder layer.

The layer is the first at which the drop hardly changes the next token: mean KL(full || dropped) at most eta. Tokens are
not scored, so the gate costs nothing. Weak if answers need the image in late layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import NoConstants
from secateur.selection.selector import GateSite, Selector
from secateur.selection.statistics import Statistics

PUBLISHED, START, DEPTH = 15, 5, 32  # the layer for LLaVA-1.5-7B, and where its search starts
ETA = 0.003


@dataclass(frozen=True)
class Method(base.Method):
    """Options of VTW."""

    statistics: ClassVar[frozenset[str]] = frozenset({"drop_divergence"})

    eta: float = field(
        default=ETA,
        metadata={
            "help": "largest mean KL in nats that the drop may cause; published: 7B 0.003, 13B 0.0005, NeXT-7B 0.0001"
        },
    )
    start: int | None = field(
        default=None, metadata={"help": "first layer of the search (default 5 of 32, scaled by depth)"}
    )

    def __post_init__(self) -> None:
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise BadSchedule(f"eta {self.eta:g} must be at least 0 nats and finite")
        if self.start is not None and self.start < 1:
            raise BadSchedule(f"start {self.start} must be at least 1; the layers before it always see the image")

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate; its layer comes from the request, its compression, or the search."""
        if request.layers is not None or request.compression is not None:
            self.refuse(["start"], "when --layers or --compression sets the layer")
        model, depth = statistics.model, statistics.dimensions.layers
        keep = _keep(request, model.vision_tokens)
        divergence = [float(kl) for kl in statistics.drop_divergence.mean(1)] if statistics.drop_divergence.size else []
        layer, source, note = self._layer(request, depth, divergence)
        placed = plan(BudgetRequest(keep=(keep,), layers=(layer,)), depth, model.vision_tokens, (), (), earliest=0)
        report: Json = {
            "samples": statistics.drop_divergence.shape[1] if divergence else 0,
            "seed": statistics.seed,
            "eta": self.eta,
            "layer": layer,
            "layer_from": source,
            "mean_kl": [round(kl, 6) for kl in divergence],
            "exceeds_eta": divergence[layer] > self.eta if divergence else None,
            "note": note,
        }
        return self.schedule(statistics, placed.gates(), report)

    def _layer(self, request: BudgetRequest, depth: int, divergence: list[float]) -> tuple[int, str, str]:
        """Return the layer of the drop, its source, and a note for the report."""
        if request.layers is not None:
            return request.layers[0], "request", ""
        if request.compression is not None:
            return _nearest(request.compression, depth), "compression", ""
        if not divergence:
            layer = min(max(round(PUBLISHED * depth / DEPTH), 1), depth - 1)
            return layer, "depth", f"nothing was measured: the published layer {PUBLISHED} of {DEPTH}, scaled by depth"
        start = max(round(START * depth / DEPTH), 1) if self.start is None else self.start
        if start >= depth:
            raise BadSchedule(f"start {start} is outside the model; its last layer is {depth - 1}")
        for layer in range(start, depth):
            if divergence[layer] <= self.eta:
                return layer, "search", ""
        return depth - 1, "search", f"no layer from {start} on costs at most {self.eta:g} nats: the last layer"

    @classmethod
    def selector(cls, site: GateSite, constants: NoConstants) -> Selector:
        raise BadSchedule(
            f"a vtw gate keeps 0 or all {site.vision_tokens} tokens, not {site.gate.keep}; calibrate the schedule again"
        )


def _keep(request: BudgetRequest, tokens: int) -> float:
    """Return the share that the gate keeps: 0, or 1 to test the graphs."""
    if request.layers is not None and len(request.layers) != 1:
        raise BadSchedule(f"vtw drops the image at one layer, not at {len(request.layers)}; give one with --layers")
    if request.layers is not None and request.compression is not None:
        raise BadSchedule("--layers and --compression both set the layer of the drop; give one of them")
    if request.keep is None:
        return 0.0
    request.check()
    if len(request.keep) != 1 or request.keep[0] not in (0, 1, tokens):
        given = ",".join(f"{value:g}" for value in request.keep)
        raise BadSchedule(
            f"keep {given} does not fit vtw, which keeps 0 tokens (or 1.0, all of them, in tests); use --compression"
        )
    return float(request.keep[0] > 0)


def _nearest(compression: float, depth: int) -> int:
    """Return the layer K whose K / depth is nearest to the share kept; at least 1: the first layer sees the image."""
    if not 0 <= compression < 1:
        raise BadSchedule(f"compression {compression:g} must be at least 0 and below 1")
    return min(max(round((1 - compression) * depth), 1), depth - 1)
