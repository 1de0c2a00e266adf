# SPDX-License-Identifier: Apache-2.0
"""How many vision tokens each decoder layer needs, and how to say that with few cuts (arXiv 2409.10197).

A staircase is the number of tokens that enter each of L layers. It never rises, and starts with all N: a layer's
attention decides what the next layer sees.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from secateur.selection.statistics import Floats


def lost(cross: Floats, own: Floats) -> NDArray[np.float64]:
    """Share of the attention mass that a layer loses with its best 1 .. N tokens: [L, C, N] twice -> [L, N].

    Tokens are ranked in each sample by cross x self, ties to the lower index. The share of each mass is the mean over
    samples; the larger of the two losses counts.
    """
    order = np.argsort(-(cross.astype(np.float64) * own), axis=-1, kind="stable")
    kept = [_kept_share(np.take_along_axis(mass, order, axis=-1)).mean(1) for mass in (cross, own)]
    out: NDArray[np.float64] = np.maximum(1 - np.minimum(*kept), 0)
    out[:, -1] = 0  # all tokens lose nothing, whatever the rounding
    return out


def _kept_share(ranked: Floats) -> NDArray[np.float64]:
    summed = ranked.astype(np.float64).cumsum(-1)
    whole = summed[..., -1:]
    out: NDArray[np.float64] = np.divide(summed, whole, out=np.ones_like(summed), where=whole > 0)
    return out


def staircase(losses: NDArray[np.float64], alpha: float) -> tuple[int, ...]:
    """Each layer keeps the fewest tokens that lose at most `alpha`, and no layer more than one before it."""
    layers, tokens = losses.shape
    needed = [1 + int((losses[layer] > alpha).sum()) for layer in range(layers - 1)]
    return tuple(accumulate([tokens, *needed], min))


def search(losses: NDArray[np.float64], average: float) -> tuple[float, tuple[int, ...]]:
    """The alpha whose staircase comes nearest to `average` tokens a layer, and that staircase.

    The average falls as alpha grows, and only at the values in `losses`: a binary search over these is exact.
    """
    alphas = np.unique(losses).tolist()

    def below(alpha: float) -> bool:
        return sum(staircase(losses, alpha)) <= average * len(losses)

    first = min(bisect_left(alphas, True, key=below), len(alphas) - 1)
    near = alphas[max(first - 1, 0) : first + 1]
    alpha = min(near, key=lambda value: abs(sum(staircase(losses, value)) - average * len(losses)))
    return alpha, staircase(losses, alpha)


def from_table(deletions: Sequence[int], tokens: int) -> tuple[int, ...]:
    """The staircase of a published table: how many tokens each layer's attention deletes; at least one is left.

    What the last layer deletes no layer sees.
    """
    return tuple(max(tokens - gone, 1) for gone in accumulate([0, *deletions[:-1]]))


def merge(steps: Sequence[int], cuts: int) -> tuple[int, ...]:
    """The layers of at most `cuts` cuts that follow the staircase best: least squared deviation of the levels.

    Before the first cut all tokens are alive; behind a cut the level is the mean up to the next. Exact, by dynamic
    programming over the end of a prefix; fewer cuts win a tie, then earlier ones. At least one cut, at layer 1.
    """
    depth = len(steps)
    sums = list(accumulate(steps, initial=0))
    squares = list(accumulate((step * step for step in steps), initial=0))

    def deviation(start: int, end: int) -> Fraction:
        return squares[end] - squares[start] - Fraction((sums[end] - sums[start]) ** 2, end - start)

    # Of the layers before `end`: their deviation, the number of cuts, the cuts.
    best: list[tuple[Fraction, int, tuple[int, ...]]] = [
        (Fraction(sum((steps[0] - step) ** 2 for step in steps[:end])), 0, ()) for end in range(depth + 1)
    ]
    for _ in range(cuts):
        one_more = [
            [(best[cut][0] + deviation(cut, end), best[cut][1] + 1, (*best[cut][2], cut)) for cut in range(1, end)]
            for end in range(depth + 1)
        ]
        best = [min([before, *later]) for before, later in zip(best, one_more, strict=True)]
    return best[depth][2] or (1,)


def levels(steps: Sequence[int], cuts: Sequence[int]) -> tuple[float, ...]:
    """The mean of the staircase from each cut to the next."""
    ends = [*cuts[1:], len(steps)]
    return tuple(sum(steps[cut:end]) / (end - cut) for cut, end in zip(cuts, ends, strict=True))
