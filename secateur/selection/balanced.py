# SPDX-License-Identifier: Apache-2.0
"""Selection of Balanced Token Pruning (arXiv 2505.22038, section 4.2): importance and diversity in fixed quotas.

`Quotas` are the constants of a gate, with the functions that compute them for each preset.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadSchedule
from secateur.selection import diversity
from secateur.selection.attention import attention_logits, attention_softmax, rebalance
from secateur.selection.constants import one_of
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.spatial import PATTERNS, farthest_points, spatial_points
from secateur.selection.topk import ascending, top


@dataclass(frozen=True)
class Quotas:
    """Constants of one gate that keeps k of N tokens.

    merge      "union": the sets below may overlap, greedy picks fill up to k (released code, its duplicates merged);
               "disjoint": each set leaves out the tokens already chosen, and the sets add up to k
    attention  tokens by importance
    over       candidates of the rebalancing, attention <= over <= N
    early      slots below it come first among the candidates
    spatial    points of the constant `pattern` on the token grid; in a union the last of them give way to other sets
    diversity  greedy picks: in a union from an empty set, in disjoint sets from the tokens already chosen
    fills      further greedy picks to fill a union
    score      "logits" or "softmax"
    query      "last" prompt row, or mean over the question's rows ("text")
    features   distances between "hidden" states, or between keys ("key") of the layer before
    """

    merge: str
    attention: int
    over: int
    early: int
    spatial: int = 0
    pattern: str = "off"
    diversity: int = 0
    fills: int = 0
    score: str = "logits"
    query: str = "last"
    features: str = "hidden"

    def __post_init__(self) -> None:
        one_of("merge", self.merge, ("union", "disjoint"))
        one_of("pattern", self.pattern, ("off", *PATTERNS))
        one_of("score", self.score, ("logits", "softmax"))
        one_of("query", self.query, ("last", "text"))
        one_of("features", self.features, ("hidden", "key"))

    def check(self, tokens: int, keep: int) -> None:
        """Compare the quotas with N = `tokens` and k = `keep`.

        Raises:
            BadSchedule: a constant does not fit; the message names its bound.
        """
        for name in ("attention", "spatial", "diversity"):
            if not 0 <= getattr(self, name) <= keep:
                raise BadSchedule(f"{name} {getattr(self, name)} of a btp gate must be within 0 and {keep}, its keep")
        if not 0 <= self.early <= tokens:
            raise BadSchedule(f"early {self.early} of a btp gate must be within 0 and {tokens}")
        if not self.attention <= self.over <= tokens:
            raise BadSchedule(f"over {self.over} of a btp gate must be within {self.attention} and {tokens}")
        total = self.attention + self.spatial + self.diversity
        if self.merge == "disjoint" and total != keep:
            raise BadSchedule(f"the disjoint quotas of a btp gate add up to {total}, not to {keep}, its keep")
        if self.merge == "union" and total == 0:
            raise BadSchedule("the quotas of a btp gate are all 0; give one at least 1")
        if self.merge == "union" and self.attention + self.diversity > keep:
            raise BadSchedule(
                f"attention {self.attention} and diversity {self.diversity} of a btp gate add up to more than {keep}, "
                "its keep; lower one of them"
            )
        if not 0 <= self.fills <= keep:
            raise BadSchedule(f"fills {self.fills} of a btp gate must be within 0 and {keep}, its keep")


def part(share: float, count: int) -> int:
    """Return `share` of `count`, rounded down as in the released code, at least 1 for a share above 0."""
    return max(1, math.floor(share * count + 1e-9)) if share > 0 else 0


def union_quotas(
    tokens: int, keep: int, attention: float, over: float, fills: int, spatial: tuple[int, ...], early: int
) -> Quotas:
    """Return the quotas of the released LLaVA-1.5 code.

    Of k kept tokens, the first gate takes 0.3 k by attention and 0.3 k by greedy picks, the second 0.9 k and 0.1 k, the
    last all by attention: the share of picks is min(0.3, 1 - attention). `spatial` are the constant points of the gate.
    `fills` make up for overlaps of the sets; if the sets are too small even without overlaps, they are increased.
    """
    by_attention = min(part(attention, keep), keep)
    cold = min(part(min(0.3, 1 - attention), keep), keep - by_attention)
    if by_attention + cold + len(spatial) == 0:
        cold = 1
    short = max(0, keep - by_attention - cold - len(spatial))
    most = keep - max(by_attention, cold, len(spatial))
    return Quotas(
        merge="union",
        attention=by_attention,
        over=_over(over, by_attention, tokens),
        early=early,
        spatial=len(spatial),
        diversity=cold,
        fills=min(most, short + fills),
    )


def disjoint_quotas(
    tokens: int, keep: int, attention: int, over: float, spatial: tuple[int, ...], early: int
) -> Quotas:
    """Return quotas that add up to k: `attention` tokens by attention, spatial points, the rest by diversity.

    This is the form of preset "paper", and of the first gates of the released Qwen2.5-VL code.
    """
    by_attention = min(attention, keep)
    points = min(len(spatial), keep - by_attention)
    return Quotas(
        merge="disjoint",
        attention=by_attention,
        over=_over(over, by_attention, tokens),
        early=early,
        spatial=points,
        diversity=keep - by_attention - points,
    )


def _over(ratio: float, quota: int, tokens: int) -> int:
    return min(max(math.floor(quota * ratio + 1e-9), quota), tokens)


def first_points(pattern: str, grid: tuple[int, int], tokens: int, keep: int) -> tuple[int, ...]:
    """Return the spatial points of the first gate: keep / 2 points if all tokens of the grid are alive, else none."""
    if pattern == "off" or tokens != grid[0] * grid[1]:
        return ()
    return spatial_points(pattern, grid, keep // 2)


class BalancedSelector(Selector):
    """Keeps tokens by attention, spatial points and diversity, in fixed quotas."""

    points: Tensor
    worth: Tensor
    priority: Tensor
    slots: Tensor

    def __init__(self, quotas: Quotas, site: GateSite) -> None:
        super().__init__()
        quotas.check(site.vision_tokens, site.gate.keep)
        self.quotas, self.keep = quotas, site.gate.keep
        self.start, self.tokens = site.image_start, site.vision_tokens
        self.query = "query" if quotas.query == "last" else "text_query"
        scored, keyed = bool(quotas.attention), quotas.attention or quotas.features == "key"
        self.reads = ((self.query,) if scored else ()) + (("key",) if keyed else ())
        points = spatial_points(quotas.pattern, site.grid, quotas.spatial)
        if points and self.tokens != site.grid[0] * site.grid[1]:
            raise BadSchedule(f"spatial points need all tokens of the {site.grid} grid, not {self.tokens} of them")
        self.register_buffer("points", torch.tensor(sorted(points), dtype=torch.int64))
        place = torch.zeros(self.tokens)  # n for the first of n points, 1 for the last, 0 for other tokens
        place[list(points)] = torch.arange(len(points), 0, -1, dtype=torch.float32)
        self.register_buffer("worth", torch.where(place > 0, quotas.fills + place, 0.0))
        if points and quotas.merge == "disjoint":
            # Attention may have taken some of the points: the rest of the grid follows as replacements.
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
        """Return the slots [B, attention] with the largest importance, rebalanced."""
        quotas = self.quotas
        query, key = rows.read[self.query], rows.read["key"]
        if quotas.score == "logits":
            score = attention_logits(query, key.narrow(0, self.start, self.tokens))
        else:
            score = attention_softmax(query, key, rows.attention_mask, self.start, self.tokens)
        return rebalance(score, quotas.attention, quotas.over, quotas.early)

    def _features(self, rows: GateInputs) -> Tensor:
        if self.quotas.features == "hidden":
            return rows.vision
        return rows.read["key"].narrow(0, self.start, self.tokens).flatten(2).transpose(0, 1)

    def _union(self, distance: Tensor, chosen: Tensor | None) -> Tensor:
        """Merge sets that may overlap, then fill up to k with greedy picks.

        The number of picks that a union needs depends on the image, but in a graph it is constant. So the graph always
        makes `fills` picks, and one key per token lets top-k take as many as fit: first members of a set, then picks
        in their order, then the rest by distance to all. If the sets alone exceed k, spatial points are left out, the
        last ones of the farthest-point sampling first.
        """
        quotas = self.quotas
        reaches = []  # per set: distance to its nearest member, below 0 at the members
        if quotas.diversity:
            reaches.append(diversity.farthest(distance, quotas.diversity)[1])
        if chosen is not None:
            reaches.append(diversity.nearest(distance, chosen))
        reach = diversity.nearest_constant(distance, self.points) if quotas.spatial else reaches[0]
        for other in reaches:
            reach = torch.minimum(reach, other)
        key = reach  # at most 0.5: the rest stays below every pick
        if quotas.fills:
            picks, reach = diversity.farthest(distance, quotas.fills, reach)
            order = torch.arange(quotas.fills, 0, -1, dtype=torch.float32, device=distance.device).unsqueeze(1)
            matches = (picks.unsqueeze(2) == self.slots).float() * order
            key = torch.maximum(matches.amax(1), reach)
        if quotas.spatial:
            key = torch.maximum(key, self.worth)
        for members in reaches:
            key = torch.where(members < 0, float(quotas.fills + quotas.spatial + 1), key)
        return top(key, self.keep)

    def _disjoint(self, distance: Tensor, chosen: Tensor | None) -> Tensor:
        """Choose by attention, then spatial points not yet chosen, then greedy picks far from both: k tokens in all."""
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
