# SPDX-License-Identifier: Apache-2.0
"""Times of every query without warm-up (--exportTimes). The format is the same from 10.3 to 11.1.

    [
      { "startEnqMs" : 2.67, "endEnqMs" : 2.71, ..., "computeMs" : 0.873472, "d2hMs" : 0, "latencyMs" : 0.87 }
    , { ... }
    ]

Pitfall: figures have six digits, and the start and end of a query are counted from the start of the run. After ten
seconds, their difference (the enqueue time) has a resolution of 0.1 ms. The median in the console output is exact.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.engines.results.file import read, refused

FLAG = "--exportTimes"


@dataclass(frozen=True)
class Times:
    """Milliseconds of each query in chronological order; at least one query.

    compute   time on the GPU
    enqueue   time on the host, coarse (see above)
    """

    compute: tuple[float, ...]
    enqueue: tuple[float, ...]


def read_times(path: Path) -> Times:
    """Return the times in a file.

    Raises:
        BadMeasurement: it is not such a file, is truncated, or contains no query.
    """
    try:
        queries = json.loads(read(path, FLAG))
    except (ValueError, RecursionError) as problem:
        raise refused(path, FLAG, f"it is truncated or not JSON ({problem})") from None
    if not isinstance(queries, list) or not queries:
        raise refused(path, FLAG, f"it contains {'no query' if queries == [] else 'no list of queries'}")
    try:
        return Times(
            tuple(_milliseconds(query, "computeMs") for query in queries),
            tuple(_milliseconds(query, "endEnqMs") - _milliseconds(query, "startEnqMs") for query in queries),
        )
    except ValueError as problem:
        raise refused(path, FLAG, str(problem)) from None


def _milliseconds(query: Any, field: str) -> float:
    value: Any = query.get(field) if isinstance(query, dict) else None
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"a query has {field} {value!r}, not a time")
    return float(value)
