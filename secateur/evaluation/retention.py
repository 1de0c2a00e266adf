# SPDX-License-Identifier: Apache-2.0
"""Score and retention with intervals: percentile bootstrap over images, paired with the reference.

Answers to questions about one image are correlated, so these questions are resampled together; else the intervals would
be too narrow. Where each question has its own image this is the usual bootstrap over questions.

A resample draws as many clusters of questions as there are, with replacement. It is a row of weights, the number of
times each question was drawn, so any metric of a task can be computed on it. Equal seeds give equal resamples, so the
comparison of two schedules is paired.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Interval = tuple[float, float]
RESAMPLES = 2000
CHUNK = 1 << 22  # weights held at once


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
