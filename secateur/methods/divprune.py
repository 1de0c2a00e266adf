# SPDX-License-Identifier: Apache-2.0
"""DivPrune, arXiv 2503.02175, CVPR 2025.

Max-min diversity of the projected vision tokens, before the decoder: the first token is the one whose nearest
neighbour is farthest away by cosine distance, and every further one is the farthest from all that are chosen. The
picks are unrolled with a running minimum, so each looks at one row of the distance matrix.
"""

from __future__ import annotations

from torch import Tensor

from secateur.artifacts import Schedule
from secateur.calibration.budget import plan
from secateur.calibration.statistics import Statistics
from secateur.methods import _diversity as diversity
from secateur.methods import base
from secateur.methods._parameters import Nothing, parameters

SHARE = 0.098


class Method(base.Method):
    """DivPrune has no options of its own."""

    def calibrate(self, statistics: Statistics, request: base.BudgetRequest) -> Schedule:
        """One gate before the decoder unless the request names layers; there, hidden states are compared."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        return self.schedule(statistics, plan(request, depth, tokens, (0,), (SHARE,), earliest=0).gates())

    @classmethod
    def selector(cls, site: base.GateSite) -> base.Selector:
        parameters(Nothing, site.gate.selector, "divprune")
        return Diverse(site.gate.keep)


class Diverse(base.Selector):
    """Farthest-point picks from a cold start."""

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, rows: base.GateInputs) -> Tensor:
        distance = diversity.cosine_distance(rows.vision, rows.vision_index)
        return base.ascending(diversity.farthest(distance, self.keep)[0])
