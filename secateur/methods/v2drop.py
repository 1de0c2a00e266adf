# SPDX-License-Identifier: Apache-2.0
"""V2Drop, arXiv 2509.01552, CVPR 2026.

Drops the tokens that a layer hardly changes: the score is the L2 norm of the difference of a token's hidden states
after and before the layer that precedes the gate. No attention is needed. The released constants for LLaVA-1.5, scaled
by depth: half of the tokens from layer 3 of 32, a quarter from layer 17, one token from layer 22.
"""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.bundle.schedule import Schedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import NoConstants
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import best

LAYERS = (3, 17, 22)  # of 32


class Method(base.Method):
    """V2Drop has no options of its own."""

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Use shares 1/2, 1/4 and 1/N; a compression scales them together."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        shares = (1 / 2, 1 / 4, min(1 / 4, 1 / tokens))
        layers = [layer * depth / 32 for layer in LAYERS]
        placed = plan(request, depth, tokens, layers, shares, earliest=1)
        return self.schedule(statistics, placed.gates(), placed.report())

    @classmethod
    def selector(cls, site: GateSite, constants: NoConstants) -> Selector:
        return Changed(site)


class Changed(Selector):
    """Keeps the tokens that the layer before the gate changed most."""

    reads = ("layer_input",)

    def __init__(self, site: GateSite) -> None:
        super().__init__()
        self.keep, self.start, self.tokens = site.gate.keep, site.image_start, site.vision_tokens

    def forward(self, rows: GateInputs) -> Tensor:
        before = rows.read["layer_input"][:, self.start : self.start + self.tokens]
        change = torch.linalg.vector_norm(rows.vision.float() - before.float(), dim=-1)
        return best(change, self.keep)
