# SPDX-License-Identifier: Apache-2.0
"""Constants that the authors of Balanced Token Pruning (arXiv 2505.22038) published, by family of models."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Published:
    """Constants of one of the authors' files, a value for each gate; the lambdas are those of the paper's table 7.

    source     model that they are for
    depth      its decoder layers
    layers     layers of the gates, of `depth`
    drop       layer of the final drop, of `depth`
    shares     kept share of all tokens
    attention  share of kept tokens by attention
    over       candidates of the rebalancing, as a multiple of the quota
    score      "logits" or "softmax"
    merge      "union" or "disjoint", see `Quotas`
    spatial    pattern of the spatial points at the first gate, or "off"
    lambdas    weights of attention in the preset "paper"
    """

    source: str
    depth: int
    layers: tuple[int, ...]
    drop: int
    shares: tuple[float, ...]
    attention: tuple[float, ...]
    over: tuple[float, ...]
    score: str
    merge: str
    spatial: str
    lambdas: tuple[float, ...]


LLAVA = Published(
    source="LLaVA-1.5",
    depth=32,
    layers=(3, 6, 14),
    drop=22,
    shares=(1 / 2, 1 / 4, 1 / 12),
    attention=(0.3, 0.9, 1.0),
    over=(3.7, 1.5, 1.2),
    score="logits",
    merge="union",
    spatial="manhattan",
    lambdas=(0.6, 0.8, 1.0),
)
LLAVA_NEXT = replace(LLAVA, lambdas=(0.4, 0.7, 1.0))  # no code was released
QWEN = Published(
    source="Qwen2.5-VL",
    depth=28,
    layers=(3, 6, 15),
    drop=22,
    shares=(1 / 2, 1 / 4, 1 / 8),
    attention=(0.12, 0.4, 1.0),
    over=(1.0, 1.0, 1.2),
    score="softmax",
    merge="disjoint",  # greedy picks start from the tokens by attention
    spatial="off",
    lambdas=(0.2, 0.5, 0.8, 1.0),
)
BY_FAMILY = {"llava_next": LLAVA_NEXT, "qwen2_vl": QWEN, "qwen2_5_vl": QWEN, "qwen3_vl": QWEN}


def published(family: str) -> Published:
    """Return the constants for models of `family`: for one that the authors did not publish, those of LLaVA-1.5."""
    return BY_FAMILY.get(family, LLAVA)
