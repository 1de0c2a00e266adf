# SPDX-License-Identifier: Apache-2.0
"""Scales, round ticks, and labels without overlap for charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Map from [start, end] to the pixels [first, last], linear or logarithmic."""

    start: float
    end: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        at, start, end = (math.log(v) if self.log else v for v in (value, self.start, self.end))
        return self.first + (at - start) / (end - start) * (self.last - self.first)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round figures in [low, high], in steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def halvings(low: float, high: float) -> list[float]:
    """Return 1, 1.5, 2, 3, 4, 6, 8 ... in [low, high], or only powers of two if there are many."""
    every = [2.0**i * f for i in range(24) for f in (1, 1.5)]
    inside = [v for v in every if low <= v <= high]
    return inside if len(inside) <= 5 else [v for v in inside if math.log2(v).is_integer()]


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions nearest to `wanted` (least squares), in its order, at least `gap` apart, in [low, high].

    After subtracting i gaps from the i-th position, this is isotonic regression, solved by pooling adjacent violators.

    Raises:
        ValueError: the labels do not fit.
    """
    room = high - low - gap * (len(wanted) - 1)
    if room < 0:
        raise ValueError(f"{len(wanted)} labels {gap} apart do not fit within {low} and {high}")
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # mean, members
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, members = blocks.pop()
            mean, count = (mean * count + other * members) / (count + members), count + members
        blocks.append((mean, count))
    pooled = [mean for mean, count in blocks for _ in range(count)]
    places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        places[i] = min(max(pooled[rank], low), low + room) + rank * gap
    return places
