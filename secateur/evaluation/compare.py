# SPDX-License-Identifier: Apache-2.0
"""Comparison of a schedule with `full` on the same questions: retention, McNemar's exact test, split of VTC-Bench.

Intervals are percentile bootstrap over images, paired with `full`. Answers to questions about one image are correlated,
so these questions are resampled together; else the intervals would be too narrow. If each question has its own image,
this is the usual bootstrap over questions.

A resample draws as many clusters of questions as there are, with replacement. It is a row of weights, the number of
times each question was drawn, so any metric of a task can be computed on it. Equal seeds give equal resamples, so the
comparison of two schedules is paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.schedule import Schedule
from secateur.evaluation.results import DOWNSAMPLE, Interval, McNemar, Split, SplitPart

Array = NDArray[np.float64]
RESAMPLES = 2000
CHUNK = 1 << 22  # weights in memory at once
RIGHT = 0.5
SPREAD = 0.85
"""Two schedules have about the same budget if the smaller has at least this share of the larger one's tokens."""


@dataclass(frozen=True)
class Retention:
    """Score and retention with their 95 % intervals (low, high).

    retention  score over the reference's; None if the reference scores 0. Its interval ignores resamples in which the
               reference scores 0, and is None if that is the case in all.
    """

    score: float
    score_interval: Interval
    retention: float | None
    retention_interval: Interval | None


def resamples(clusters: Sequence[str], seed: int = 0, count: int = RESAMPLES) -> Iterator[Array]:
    """Yield `count` rows of weights [., N] for N questions, in chunks; questions of one cluster have equal weights."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    rng = np.random.default_rng(seed)
    piece = max(1, CHUNK // len(clusters))
    for start in range(0, count, piece):
        picks = rng.integers(0, names.size, (min(piece, count - start), names.size))
        drawn = np.stack([np.bincount(row, minlength=names.size) for row in picks])
        yield drawn[:, index].astype(np.float64)


def retention(
    ours: Callable[[Array], Array], reference: Callable[[Array], Array], clusters: Sequence[str], seed: int = 0
) -> Retention:
    """Compare two runs over the same questions.

    ours, reference  functions from weights [..., N] to the metric [...] of each run
    clusters         [N], the image of each question: questions about one image are resampled together

    Raises:
        ValueError: there are no questions.
    """
    if not clusters:
        raise ValueError("there are no questions to compare")
    every = np.ones(len(clusters))
    score, whole = float(ours(every)), float(reference(every))
    drawn = [(ours(weights), reference(weights)) for weights in resamples(clusters, seed)]
    mine, theirs = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    defined = theirs > 0
    return Retention(
        score=score,
        score_interval=_interval(mine),
        retention=score / whole if whole > 0 else None,
        retention_interval=_interval(mine[defined] / theirs[defined]) if whole > 0 and defined.any() else None,
    )


def _interval(values: Array) -> Interval:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


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
