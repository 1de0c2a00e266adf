# SPDX-License-Identifier: Apache-2.0
"""Class-token attention (FasterVLM), arXiv 2412.01818.

Prunes once, behind the vision encoder: the patches that the class token attends to most in the last layer but one
stay. No text is read. An encoder without a class token is scored by the attention that a patch gets from the patches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from secateur.artifacts import Gate, Schedule
from secateur.calibration.budget import front
from secateur.calibration.statistics import Statistics
from secateur.errors import BadSchedule
from secateur.methods import base

SHARE = 0.25
SCORES = ("class_token", "received")


@dataclass(frozen=True)
class Method(base.Method):
    """Options of the class-token method."""

    score_layer: int = field(
        default=-2, metadata={"help": "encoder layer whose attention scores, from the end: -1 is the last"}
    )

    def __post_init__(self) -> None:
        if self.score_layer >= 0:
            raise BadSchedule(
                f"score_layer {self.score_layer} must be below 0: layers count from the end, -1 is the last"
            )

    def calibrate(self, statistics: Statistics, request: base.BudgetRequest) -> Schedule:
        """One gate; the score is the class token's where there is one. Nothing is measured."""
        model, dimensions = statistics.model, statistics.dimensions
        keep = front(request, dimensions.layers, model.vision_tokens, SHARE)
        score = "class_token" if dimensions.class_token else "received"
        gate = Gate(0, keep, "vision", {"score": score, "score_layer": self.score_layer})
        return self.schedule(statistics, (gate,))

    @classmethod
    def selector(cls, site: base.GateSite) -> base.Selector:
        keep, read = site.gate.keep, score_name(site, "cls")
        return base.Fixed(range(keep)) if keep in (0, site.vision_tokens) else Best(keep, read)


def score_name(site: base.GateSite, method: str) -> str:
    """What a gate of `method` reads, such as "class_token.-2", from its fields `score` and `score_layer`.

    Raises:
        BadSchedule: the gate names another score, no layer from the end, or a class token that is not there.
    """
    score = site.gate.selector.get("score", "class_token")
    layer = site.gate.selector.get("score_layer", -2)
    if score not in SCORES:
        raise BadSchedule(f"score {score!r} of a {method} gate is not one of {', '.join(SCORES)}")
    if score == "class_token" and not site.dimensions.class_token:
        raise BadSchedule(f"a {method} gate scores by the class token, which this vision encoder lacks; calibrate anew")
    if not isinstance(layer, int) or layer >= 0:
        raise BadSchedule(f"score_layer {layer!r} of a {method} gate must be a whole number below 0")
    return f"{score}.{layer}"


class Best(base.Selector):
    """The `keep` tokens with the largest of one score [B, N]."""

    def __init__(self, keep: int, read: str) -> None:
        super().__init__()
        self.keep = keep
        self.reads = (read,)

    def forward(self, rows: base.GateInputs) -> Tensor:
        return base.best(rows.read[self.reads[0]].float(), self.keep)
