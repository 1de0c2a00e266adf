# SPDX-License-Identifier: Apache-2.0
"""Class-token attention (FasterVLM), arXiv 2412.01818.

Prunes once, after the vision encoder: the patches that the class token attends to most in the second-to-last layer
stay. No text is read. An encoder without a class token is scored by the attention that a patch gets from the patches.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from torch import Tensor

from secateur.bundle.schedule import Gate, Schedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, front
from secateur.selection.constants import EncoderScore
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import best

SHARE = 0.25


@dataclass(frozen=True)
class Method(base.Method):
    """Options of the class-token method."""

    constants = EncoderScore

    score_layer: int = field(
        default=-2, metadata={"help": "encoder layer whose attention scores, from the end: -1 is the last"}
    )

    def __post_init__(self) -> None:
        EncoderScore(score_layer=self.score_layer)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate, scored by the class token if there is one. Nothing is measured."""
        model, dimensions = statistics.model, statistics.dimensions
        keep = front(request, dimensions.layers, model.vision_tokens, SHARE)
        score = EncoderScore("class_token" if dimensions.class_token else "received", self.score_layer)
        return self.schedule(statistics, (Gate(0, keep, "vision", asdict(score)),))

    @classmethod
    def selector(cls, site: GateSite, constants: EncoderScore) -> Selector:
        return Best(site.gate.keep, constants.name(site))


class Best(Selector):
    """Keeps the `keep` tokens with the largest score [B, N]."""

    def __init__(self, keep: int, read: str) -> None:
        super().__init__()
        self.keep = keep
        self.reads = (read,)

    def forward(self, rows: GateInputs) -> Tensor:
        return best(rows.read[self.reads[0]].float(), self.keep)
