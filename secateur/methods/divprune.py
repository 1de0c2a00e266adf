# SPDX-License-Identifier: Apache-2.0
"""DivPrune, arXiv 2503.02175, CVPR 2025.

Max-min diversity of the projected vision tokens, before the decoder. The first token is the one whose nearest
neighbor is farthest away by cosine distance; each next one is the farthest from all chosen tokens. The picks are
unrolled with a running minimum, so each reads one row of the distance matrix.
"""

from __future__ import annotations

from torch import Tensor

from secateur.bundle.schedule import Schedule
from secateur.methods import base
from secateur.selection import diversity
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import NoConstants
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import ascending

SHARE = 0.098


class Method(base.Method):
    """DivPrune has no options of its own."""

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate before the decoder unless the request names layers; there, hidden states are compared."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        return self.schedule(statistics, plan(request, depth, tokens, (0,), (SHARE,), earliest=0).gates())

    @classmethod
    def selector(cls, site: GateSite, constants: NoConstants) -> Selector:
        return Diverse(site.gate.keep)


class Diverse(Selector):
    """Keeps tokens that are far apart, chosen one by one."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, rows: GateInputs) -> Tensor:
        distance = diversity.cosine_distance(rows.vision, rows.vision_index)
        return ascending(diversity.farthest(distance, self.keep)[0])
