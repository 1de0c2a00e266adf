# SPDX-License-Identifier: Apache-2.0
"""The selection of Balanced Token Pruning (arXiv 2505.22038, section 4.2): importance and diversity in fixed quotas."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadSchedule
from secateur.selection import attention as importance
from secateur.selection import diversity
from secateur.selection.btp_quotas import Quotas
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.spatial import farthest_points, spatial_points
from secateur.selection.topk import ascending, top


class BalancedSelector(Selector):
    """Attention, spatial points and diversity in fixed quotas."""

    points: Tensor
    priority: Tensor
    slots: Tensor

    def __init__(self, quotas: Quotas, site: GateSite) -> None:
        super().__init__()
        self.quotas, self.keep = quotas, site.gate.keep
        self.start, self.tokens = site.image_start, site.vision_tokens
        self.query = "query" if quotas.query == "last" else "text_query"
        scored, keyed = bool(quotas.attention), quotas.attention or quotas.features == "key"
        self.reads = ((self.query,) if scored else ()) + (("key",) if keyed else ())
        points = spatial_points(quotas.pattern, site.grid, quotas.spatial)
        if points and self.tokens != site.grid[0] * site.grid[1]:
            raise BadSchedule(f"spatial points need the whole {site.grid} grid alive, not {self.tokens} tokens of it")
        self.register_buffer("points", torch.tensor(sorted(points), dtype=torch.int64))
        if points and quotas.merge == "disjoint":
            # Attention may have taken some of the points: the rest of the grid stands behind them.
            points = farthest_points(site.grid, self.tokens, quotas.pattern, points)
        self.register_buffer("priority", torch.tensor([-float(slot) for slot in np.argsort(points)]))
        self.register_buffer("slots", torch.arange(self.tokens))

    def forward(self, rows: GateInputs) -> Tensor:
        chosen = self._by_attention(rows) if self.quotas.attention else None
        if chosen is not None and self.quotas.attention == self.keep:
            return ascending(chosen)
        distance = diversity.cosine_distance(self._features(rows), rows.vision_index)
        if self.quotas.merge == "union":
            return ascending(self._union(distance, chosen))
        return ascending(self._disjoint(distance, chosen))

    def _by_attention(self, rows: GateInputs) -> Tensor:
        """Slots [B, attention] by rebalanced importance."""
        quotas = self.quotas
        query, key = rows.read[self.query], rows.read["key"]
        if quotas.score == "logits":
            score = importance.attention_logits(query, key.narrow(0, self.start, self.tokens))
        else:
            score = importance.attention_softmax(query, key, rows.attention_mask, self.start, self.tokens)
        return importance.rebalance(score, quotas.attention, quotas.over, quotas.early)

    def _features(self, rows: GateInputs) -> Tensor:
        if self.quotas.features == "hidden":
            return rows.vision
        return rows.read["key"].narrow(0, self.start, self.tokens).flatten(2).transpose(0, 1)

    def _union(self, distance: Tensor, chosen: Tensor | None) -> Tensor:
        """Merge sets that may overlap, then fill up to k with greedy picks.

        How many picks a union needs depends on the image, a graph has a constant number of them. Greedy picks do
        not change when fewer are used, so all are made, and one key per token lets top-k take as many as fit:
        members of a set above picks, earlier picks above later ones, and what is left by its distance to all.
        If the sets alone exceed k, attention outranks diversity, diversity outranks spatial points.
        """
        quotas = self.quotas
        reaches = []  # per set: distance to its nearest member, below 0 at the members
        if quotas.spatial:
            reaches.append(diversity.nearest_constant(distance, self.points))
        if quotas.diversity:
            reaches.append(diversity.farthest(distance, quotas.diversity)[1])
        if chosen is not None:
            reaches.append(diversity.nearest(distance, chosen))
        reach = reaches[0]
        for other in reaches[1:]:
            reach = torch.minimum(reach, other)
        key = reach  # at most 0.5: what is left stays below every pick
        if quotas.fills:
            picks, reach = diversity.farthest(distance, quotas.fills, reach)
            order = torch.arange(quotas.fills, 0, -1, dtype=torch.float32, device=distance.device).unsqueeze(1)
            matches = (picks.unsqueeze(2) == self.slots).float() * order
            key = torch.maximum(matches.amax(1), reach)
        for i, members in enumerate(reaches):
            key = torch.where(members < 0, float(quotas.fills + 1 + i), key)
        return top(key, self.keep)

    def _disjoint(self, distance: Tensor, chosen: Tensor | None) -> Tensor:
        """Attention, then spatial points not yet chosen, then greedy picks from both: exactly k in all."""
        quotas, parts = self.quotas, []
        reach = None
        if chosen is not None:
            parts.append(chosen)
            reach = diversity.nearest(distance, chosen)
        if quotas.spatial:
            order = self.priority if reach is None else torch.where(reach < 0, -float(self.tokens), self.priority)
            points = top(order.expand_as(distance[:, 0]), quotas.spatial)
            parts.append(points)
            near = diversity.nearest(distance, points)
            reach = near if reach is None else torch.minimum(reach, near)
        if quotas.diversity:
            parts.append(diversity.farthest(distance, quotas.diversity, reach)[0])
        return torch.cat(parts, 1)
