# SPDX-License-Identifier: Apache-2.0
"""One schedule against `full` on the same questions: McNemar's exact test, and the split of VTC-Bench."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.artifacts import Schedule
from secateur.evaluation.results import McNemar, Part, Split

Array = NDArray[np.float64]
DOWNSAMPLE = "downsample"
RIGHT = 0.5  # from this score on an answer counts as right, where it can be half right


def mcnemar(ours: Array, full: Array) -> McNemar:
    """Of per-question scores [N] that are 0 or 1.

    Questions that both runs answer alike say nothing. If the runs were equally good, each of the n others would fall to
    either side by the toss of a coin: p is twice the binomial tail up to the smaller side, at most 1
    (McNemar 1947, exact form).
    """
    only_full = int(((full > RIGHT) & ~(ours > RIGHT)).sum())
    only_this = int((~(full > RIGHT) & (ours > RIGHT)).sum())
    return McNemar(only_full, only_this, sign_test(only_full, only_this))


def sign_test(one: int, other: int) -> float:
    """Exact two-sided p of a fair coin that fell `one` times on one side and `other` times on the other."""
    n, smaller = one + other, min(one, other)
    ways, tail = 1, 1
    for i in range(smaller):
        ways = ways * (n - i) // (i + 1)
        tail += ways
    return min(1.0, math.ldexp(*_scaled(2 * tail, n)))


def _scaled(value: int, power: int) -> tuple[float, int]:
    """value / 2^power as (mantissa, exponent), where both may be beyond the range of a float."""
    shift = max(0, value.bit_length() - 64)
    return float(value >> shift), shift - power


def nearest_downsample(schedule: Schedule, every: Mapping[str, Schedule]) -> str | None:
    """Name of the schedule of the method downsample that is nearest in compression; None where there is none."""
    found = {n: abs(s.budget.compression - schedule.budget.compression) for n, s in every.items() if _downsamples(s)}
    return None if _downsamples(schedule) else min(found, key=lambda n: (found[n], n), default=None)


def _downsamples(schedule: Schedule) -> bool:
    return schedule.method == DOWNSAMPLE


def split(ours: Array, full: Array, downsampled: Array, reference: str) -> Split:
    """Scores [N] on the questions that `full` gets right: those the downsampled image gets wrong, and right.

    VTC-Bench, arXiv 2510.07143: groups A and B.
    """
    known = full >= RIGHT
    hard, easy = known & (downsampled < RIGHT), known & (downsampled >= RIGHT)
    return Split(reference, _part(ours[hard]), _part(ours[easy]))


def _part(scores: Array) -> Part:
    return Part(scores.size, float(scores.mean()) if scores.size else None)
