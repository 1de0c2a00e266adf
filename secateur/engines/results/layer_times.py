# SPDX-License-Identifier: Apache-2.0
"""--exportProfile: the time of every layer. One object a line:

    [
      { "count" : 200 }
    , { "name" : "Conv_0 + Relu_1", "timeMs" : 22.3, "averageMs" : 0.111, "medianMs" : 0.111, "percentage" : 10.9 }
    ]

Trap: names are written as they are, with quotes, backslashes and control characters, so the file may be no
JSON, or JSON that means another name. Hence a parser of exactly this layout. Names may repeat.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

from secateur.engines.results.file import read, refused

FLAG = "--exportProfile"
_SPLIT = re.compile(r'\n(?=, \{ "name" : ")')
_COUNT = re.compile(r'\s*\[\s*\{ "count" : (\d+) \}\s*')
_LAYER = re.compile(
    r', \{ "name" : "(?P<name>.*)", "timeMs" : \S+, "averageMs" : \S+, '
    r'"medianMs" : (?P<median>\S+), "percentage" : \S+ \}\s*',
    re.DOTALL,
)


@dataclass(frozen=True)
class LayerTime:
    """Milliseconds of one layer in a query, median of all, by its name in the engine."""

    name: str
    median: float


def read_layer_times(path: Path) -> tuple[LayerTime, ...]:
    """The times in a file of all layers, in the order in which they run.

    Raises:
        BadMeasurement: it is not such a file, or is cut off.
    """
    text = read(path, FLAG).rstrip()
    if not text.endswith("]"):
        raise refused(path, FLAG, "its end is cut off")
    head, *lines = _SPLIT.split(text.removesuffix("]"))
    found = _COUNT.fullmatch(head)
    if found is None:
        raise refused(path, FLAG, f"it begins with {head[:40]!r}, not with the count of queries")
    if int(found[1]) < 1:
        raise refused(path, FLAG, "no query was profiled")
    return tuple(_layer(line, path) for line in lines)


def _layer(line: str, path: Path) -> LayerTime:
    found = _LAYER.fullmatch(line)
    try:
        if found is None:
            raise ValueError
        median = float(found["median"])
        if not math.isfinite(median):
            raise ValueError
    except ValueError:
        raise refused(path, FLAG, f"this is not a layer: {line[:80]!r}") from None
    return LayerTime(found["name"], median)
