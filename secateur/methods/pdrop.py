# SPDX-License-Identifier: Apache-2.0
"""PyramidDrop (PDrop), arXiv 2410.17247, CVPR 2025.

After layers 8, 16 and 24 of 32 it keeps 1/2, 1/4 and 1/8 of the tokens: those that the last prompt row attends to
most, by the queries and keys of the layer that follows the stage. The released code computes that row a second time.
Here the layer runs on all its tokens and its own query and keys are read after it: the same score, and the cut takes
effect one layer later, on entry to layers 9, 17 and 25, scaled by depth.

Positions stay original. The released code renumbers the rows at every stage: `--positions compact`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from secateur.bundle.schedule import Schedule
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.attention import Attended
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import NoConstants
from secateur.selection.selector import GateSite, Selector
from secateur.selection.statistics import Statistics

STAGES = (8, 16, 24)  # layers of 32 that have run when a stage scores


@dataclass(frozen=True)
class Method(base.Method):
    """Options of PyramidDrop."""

    ratio: float = field(default=0.5, metadata={"help": "share of its tokens that a stage keeps (lambda)"})

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise BadSchedule(f"ratio {self.ratio:g} must be above 0 and below 1")

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place a gate for each stage; stage i, counted from 1, keeps ratio ** i of the original tokens."""
        if request.keep is not None:
            self.refuse(["ratio"], "when --keep is given")
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        layers = [stage * depth / 32 + 1 for stage in STAGES]
        shares = [self.ratio ** (i + 1) for i in range(len(request.layers or layers))]
        placed = plan(request, depth, tokens, layers, shares, earliest=1)
        return self.schedule(statistics, placed.gates(), placed.report())

    @classmethod
    def selector(cls, site: GateSite, constants: NoConstants) -> Selector:
        return Attended(site)
