# SPDX-License-Identifier: Apache-2.0
"""Percentiles by the rule of trtexec, so that its console and our tables agree for the same queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Percentiles in milliseconds; None if unknown, as for a sum of graphs that were timed separately.

    variation   standard deviation over mean
    """

    p50: float
    p90: float | None
    p95: float | None
    p99: float
    variation: float | None


def percentile(ascending: Sequence[float], p: float) -> float:
    """Return the value at index max(n - 1 - int((1 - p/100) n), 0) of n ascending values, without interpolation.

    Computed in 32-bit floats like in trtexec: p99 of 100 values is the largest one.

    Raises:
        ValueError: there are no values.
    """
    if not ascending:
        raise ValueError("percentile of no values")
    n = len(ascending)
    above = int((np.float32(1) - np.float32(p) / np.float32(100)) * np.float32(n))
    return ascending[max(n - 1 - above, 0)]


def spread(milliseconds: Sequence[float]) -> Spread:
    """Return percentiles and variation of some runs.

    Raises:
        ValueError: there are no runs.
    """
    p50, p90, p95, p99 = (percentile(sorted(milliseconds), p) for p in (50, 90, 95, 99))
    mean = float(np.mean(milliseconds))
    return Spread(p50, p90, p95, p99, float(np.std(milliseconds)) / mean if mean else 0.0)


def total(parts: Sequence[Spread]) -> Spread:
    """Return the spread of a chain of separately timed graphs: the sums of p50 and, as an upper estimate, of p99.

    Percentiles of separate runs do not add up, as all graphs are rarely slow at once. So p90 and p95 are unknown.
    """
    return Spread(sum(part.p50 for part in parts), None, None, sum(part.p99 for part in parts), None)
