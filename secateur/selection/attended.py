# SPDX-License-Identifier: Apache-2.0
"""Selector of the tokens with the most attention in the layer before the gate, shared by FastV and PyramidDrop."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from secateur.selection import attention as importance
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.topk import best

QUERIES = ("last", "all")


class Attended(Selector):
    """Keeps the tokens with the most attention, mean over heads, of the last prompt row or of all rows on average."""

    def __init__(self, site: GateSite, query: str = "last") -> None:
        super().__init__()
        self.keep, self.start, self.tokens = site.gate.keep, site.image_start, site.vision_tokens
        self.reads = ("query" if query == "last" else "queries", "key")
        received = partial(importance.attention_received, bidirectional=site.dimensions.bidirectional)
        self.score = importance.attention_softmax if query == "last" else received

    def forward(self, rows: GateInputs) -> Tensor:
        query, key = rows.read[self.reads[0]], rows.read["key"]
        return best(self.score(query, key, rows.attention_mask, self.start, self.tokens), self.keep)
