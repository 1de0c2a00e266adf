# SPDX-License-Identifier: Apache-2.0
"""--exportTimes: the times of every query, warm-up excluded. The format is the same from 10.3 to 11.1.

    [
      { "startEnqMs" : 2.67, "endEnqMs" : 2.71, ..., "computeMs" : 0.873472, "d2hMs" : 0, "latencyMs" : 0.87 }
    , { ... }
    ]

Trap: figures have six digits, and the start and end of a query count from the start of the run. After ten
seconds the time of an enqueue, their difference, is known to 0.1 ms. The console's median (console.py) is exact.
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
    """Milliseconds of each query, in order of time; at least one.

    compute   on the GPU
    enqueue   on the host, coarse (see above)
    """

    compute: tuple[float, ...]
    enqueue: tuple[float, ...]


def read_times(path: Path) -> Times:
    """The times in a file.

    Raises:
        BadMeasurement: it is not such a file, is cut off, or holds no query.
    """
    try:
        queries = json.loads(read(path, FLAG))
    except (ValueError, RecursionError) as problem:
        raise refused(path, FLAG, f"it is cut off or not JSON ({problem})") from None
    if not isinstance(queries, list) or not queries:
        raise refused(path, FLAG, f"it holds {'no query' if queries == [] else 'no list of queries'}")
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
