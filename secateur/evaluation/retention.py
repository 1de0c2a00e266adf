# SPDX-License-Identifier: Apache-2.0
"""Accuracy and retention with intervals, from right and wrong answers to the same questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Retention:
    """Each figure with its 95 % interval (low, high).

    accuracy   share of right answers
    retention  accuracy over the reference's
    """

    questions: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    retention: float
    retention_interval: tuple[float, float]


def retention(right: Sequence[bool], reference: Sequence[bool], seed: int = 0) -> Retention:
    """Compare two runs over the same questions, in the same order; percentile bootstrap over questions, paired.

    Raises:
        ValueError: the runs are empty, of different lengths, or the reference has no right answer.
    """
    ours, theirs = np.asarray(right, bool), np.asarray(reference, bool)
    if ours.shape != theirs.shape or ours.ndim != 1 or ours.size == 0:
        raise ValueError(f"runs of {ours.size} and {theirs.size} questions cannot be paired")
    if not theirs.any():
        raise ValueError("the reference has no right answer; retention is undefined")
    picks = np.random.default_rng(seed).integers(0, ours.size, (RESAMPLES, ours.size))
    accuracies = ours[picks].mean(axis=1)
    references = theirs[picks].mean(axis=1)
    ratios = accuracies[references > 0] / references[references > 0]
    return Retention(
        questions=ours.size,
        accuracy=float(ours.mean()),
        accuracy_interval=_interval(accuracies),
        retention=float(ours.mean() / theirs.mean()),
        retention_interval=_interval(ratios),
    )


def _interval(values: np.typing.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)
