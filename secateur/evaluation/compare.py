# SPDX-License-Identifier: Apache-2.0
"""Comparison of a schedule with `full` on the same questions: McNemar's exact test and the split of VTC-Bench."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.schedule import Schedule
from secateur.evaluation.results import DOWNSAMPLE, McNemar, Split, SplitPart

Array = NDArray[np.float64]
RIGHT = 0.5
SPREAD = 0.85
"""Two schedules have about the same budget if the smaller has at least this share of the larger one's tokens."""


def right(scores: Array) -> NDArray[np.bool_]:
    """Return which scores count as right answers."""
    return scores >= RIGHT


def mcnemar(ours: Array, full: Array) -> McNemar:
    """Compute McNemar's exact test (McNemar 1947) of per-question scores [N] that are 0 or 1.

    Only the n questions that exactly one run answers correctly count. If the runs are equally good, each of them favors
    either run with probability 1/2: p is twice the binomial tail up to the smaller count, at most 1.
    """
    only_full = int((right(full) & ~right(ours)).sum())
    only_this = int((~right(full) & right(ours)).sum())
    return McNemar(only_full, only_this, sign_test(only_full, only_this))


def sign_test(one: int, other: int) -> float:
    """Return the exact two-sided p of the counts `one` and `other` for a fair coin."""
    n, smaller = one + other, min(one, other)
    ways, tail = 1, 1
    for i in range(smaller):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, math.ldexp(*_scaled(2 * tail, n)))


def _scaled(value: int, power: int) -> tuple[float, int]:
    """Return value / 2^power as (mantissa, exponent); both may exceed the range of a float."""
    shift = max(0, value.bit_length() - 64)
    return float(value >> shift), shift - power


def nearest_downsample(schedule: Schedule, every: Mapping[str, Schedule]) -> str | None:
    """Return the downsample schedule nearest in average tokens; None if none is within SPREAD.

    A reference of another budget would split the questions differently.
    """
    if schedule.method == DOWNSAMPLE:
        return None
    ours = schedule.budget.average_tokens
    found = {n: s.budget.average_tokens for n, s in every.items() if s.method == DOWNSAMPLE}
    alike = {n: abs(tokens - ours) for n, tokens in found.items() if min(tokens, ours) >= SPREAD * max(tokens, ours)}
    return min(alike, key=lambda n: (alike[n], n), default=None)


def split(ours: Array, full: Array, downsampled: Array, reference: str) -> Split:
    """Split the scores [N] of questions right in `full` by whether they are right with the downsampled image.

    VTC-Bench, arXiv 2510.07143: groups A and B.
    """
    hard, easy = right(full) & ~right(downsampled), right(full) & right(downsampled)
    return Split(reference, _part(ours[hard]), _part(ours[easy]))


def _part(scores: Array) -> SplitPart:
    return SplitPart(scores.size, float(scores.mean()) if scores.size else None)
