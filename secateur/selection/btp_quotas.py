# SPDX-License-Identifier: Apache-2.0
"""How a BTP gate divides its kept tokens: the constants of a gate's `selector` block, and the presets behind them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.selection.constants import one_of, parameters
from secateur.selection.spatial import PATTERNS, spatial_points


@dataclass(frozen=True)
class Quotas:
    """Constants of one gate that keeps k of N tokens.

    merge      "union": the sets below may overlap, greedy picks fill up to k (released code, its duplicates merged);
               "disjoint": each set leaves out what is already chosen, and they add up to k
    attention  tokens by importance
    over       candidates the rebalancing looks at, attention <= over <= N
    early      slots below it come first among the candidates
    spatial    points of the constant `pattern` on the token grid
    diversity  greedy picks: union from a cold start, disjoint starting from all the others
    fills      greedy picks available to fill a union
    score      "logits" or "softmax"
    query      "last" prompt row, or mean over the question's rows ("text")
    features   what distance is measured on: "hidden" states or the "key" of the layer before
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

    @classmethod
    def read(cls, selector: Json, tokens: int, keep: int) -> Quotas:
        """Check a gate's selector block.

        Raises:
            BadSchedule: a constant is missing, unknown, or does not fit N = `tokens` and k = `keep`.
        """
        quotas = parameters(cls, selector, "btp")
        quotas._check(tokens, keep)
        return quotas

    def __post_init__(self) -> None:
        one_of("merge", self.merge, ("union", "disjoint"))
        one_of("pattern", self.pattern, ("off", *PATTERNS))
        one_of("score", self.score, ("logits", "softmax"))
        one_of("query", self.query, ("last", "text"))
        one_of("features", self.features, ("hidden", "key"))

    def _check(self, tokens: int, keep: int) -> None:
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
        if not 0 <= self.fills <= keep:
            raise BadSchedule(f"fills {self.fills} of a btp gate must be within 0 and {keep}, its keep")


def part(share: float, count: int) -> int:
    """`share` of `count`, cut to an integer as the released code cuts, and at least 1 of a share above 0."""
    return max(1, math.floor(share * count + 1e-9)) if share > 0 else 0


def union_quotas(
    tokens: int, keep: int, attention: float, over: float, fills: int, spatial: tuple[int, ...], early: int
) -> Quotas:
    """Preset "released": the token quotas of the released LLaVA-1.5 code.

    Its first gate starts 0.3 k greedy picks cold beside 0.3 k by attention, its second 0.1 k beside 0.9 k, its last
    none: min(0.3, 1 - attention). `spatial` are the constant points of this gate. `fills` cover the overlaps of the
    sets; what the sets cannot cover even without overlap comes on top.
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


def disjoint_quotas(tokens: int, keep: int, weight: float, over: float, spatial: tuple[int, ...], early: int) -> Quotas:
    """Preset "paper": `weight` (lambda) of the kept tokens by attention, then spatial points, the rest by diversity."""
    by_attention = min(round(weight * keep), keep)
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
    """Spatial points of the first gate: half of what it keeps, if the whole grid is alive there, else none."""
    if pattern == "off" or tokens != grid[0] * grid[1]:
        return ()
    return spatial_points(pattern, grid, keep // 2)
