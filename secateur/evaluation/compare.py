# SPDX-License-Identifier: Apache-2.0
"""One schedule against `full` on the same questions: McNemar's exact test, and the split of VTC-Bench."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.schedule import Schedule
from secateur.evaluation.controls import DOWNSAMPLE
from secateur.evaluation.results import McNemar, Split, SplitPart

Array = NDArray[np.float64]
RIGHT = 0.5
SPREAD = 0.85
"""Schedules are of about the same size where the smaller has at least this share of the larger one's tokens."""


def right(scores: Array) -> NDArray[np.bool_]:
    """Which answers count as right, of scores that may be half right."""
    return scores >= RIGHT


def mcnemar(ours: Array, full: Array) -> McNemar:
    """Of per-question scores [N] that are 0 or 1.

    Questions that both runs answer alike say nothing. If the runs were equally good, each of the n others would fall to
    either side by the toss of a coin: p is twice the binomial tail up to the smaller side, at most 1
    (McNemar 1947, exact form).
    """
    only_full = int((right(full) & ~right(ours)).sum())
    only_this = int((~right(full) & right(ours)).sum())
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
    """Name of the schedule of the method downsample that is nearest in average tokens; None where none is near.

    Near is within SPREAD: an image of another size would tell hard from easy at another budget.
    """
    if schedule.method == DOWNSAMPLE:
        return None
    ours = schedule.budget.average_tokens
    found = {n: s.budget.average_tokens for n, s in every.items() if s.method == DOWNSAMPLE}
    alike = {n: abs(tokens - ours) for n, tokens in found.items() if min(tokens, ours) >= SPREAD * max(tokens, ours)}
    return min(alike, key=lambda n: (alike[n], n), default=None)


def split(ours: Array, full: Array, downsampled: Array, reference: str) -> Split:
    """Scores [N] on the questions that `full` gets right: those the downsampled image gets wrong, and right.

    VTC-Bench, arXiv 2510.07143: groups A and B.
    """
    hard, easy = right(full) & ~right(downsampled), right(full) & right(downsampled)
    return Split(reference, _part(ours[hard]), _part(ours[easy]))


def _part(scores: Array) -> SplitPart:
    return SplitPart(scores.size, float(scores.mean()) if scores.size else None)
