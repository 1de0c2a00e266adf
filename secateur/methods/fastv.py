# SPDX-License-Identifier: Apache-2.0
"""FastV, arXiv 2403.06764, ECCV 2024.

One gate at layer K keeps the tokens that get the most attention in layer K - 1. K and R of the paper are `--layers`
and 1 - `--keep`; the defaults are K = 2 of 32 layers, scaled by depth, and R = 50 %.

The paper scores by the attention received from all rows on average, the released code by that of the last prompt
row. The code's form is the default: one row against the keys, where the other needs a whole attention map.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from secateur.bundle.schedule import Schedule
from secateur.methods import base
from secateur.selection.attention import QUERIES, Attended
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import one_of
from secateur.selection.selector import GateSite, Selector
from secateur.selection.statistics import Statistics

LAYER = 2  # of 32
SHARE = 0.5


@dataclass(frozen=True)
class QueryScore:
    """Constants of one gate. query: scores by the attention of the "last" prompt row or of "all" rows."""

    query: str

    def __post_init__(self) -> None:
        one_of("query", self.query, QUERIES)


@dataclass(frozen=True)
class Method(base.Method):
    """Options of FastV."""

    constants = QueryScore

    query: Literal["last", "all"] = field(
        default="last", metadata={"help": "attention of the last prompt row (released code) or of all rows (paper)"}
    )

    def __post_init__(self) -> None:
        QueryScore(self.query)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate at layer K unless the request names more."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        placed = plan(request, depth, tokens, (LAYER * depth / 32,), (SHARE,), earliest=1)
        return self.schedule(statistics, placed.gates({"query": self.query}), placed.report())

    @classmethod
    def selector(cls, site: GateSite, constants: QueryScore) -> Selector:
        return Attended(site, constants.query)
