# SPDX-License-Identifier: Apache-2.0
"""JSON files of trtexec: times (--exportTimes), layers (--exportLayerInfo) and layer times (--exportProfile).

--exportTimes, the times of every query without warm-up, the same from 10.3 to 11.1:

    [
      { "startEnqMs" : 2.67, "endEnqMs" : 2.71, ..., "computeMs" : 0.873472, "d2hMs" : 0, "latencyMs" : 0.87 }
    , { ... }
    ]

Figures have six digits, and the start and end of a query are counted from the start of the run. After ten seconds,
their difference (the enqueue time) has a resolution of 0.1 ms. The median in the console output is exact.

--exportLayerInfo:

    {"Layers": [{"Name": "...", "LayerType": "kgen", "Metadata": "[ONNX Layer: ...]", "TacticName": "...", ...}], ...}

A layer is only a name if the engine was built without detailed verbosity. With several optimization profiles, names
end with "[profile N]". `Metadata` names the ONNX nodes, separated by the control characters 0x1E and 0x1F.

--exportProfile, one object per line:

    [
      { "count" : 200 }
    , { "name" : "Conv_0 + Relu_1", "timeMs" : 22.3, "averageMs" : 0.111, "medianMs" : 0.111, "percentage" : 10.9 }
    ]

trtexec does not escape quotes, backslashes and control characters in these names, so the file may be invalid JSON, or
JSON with another name. Hence a parser of exactly this layout. Names may repeat.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.bundle.regular_file import LARGEST_LIST, read_bytes
from secateur.errors import BadMeasurement

TIMES, PROFILE, INFO = "--exportTimes", "--exportProfile", "--exportLayerInfo"
LOG = "console output"
FIRST = {"startEnqMs": TIMES, "count": PROFILE, "Layers": INFO}
"""First key in a file -> the flag that wrote it."""
_KEY = re.compile(r'[\s\[{]*"(\w+)"')
_PROFILE = re.compile(r"(?P<name>.*?)\s*\[profile (?P<number>\d+)\]", re.DOTALL)
_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")
_SPLIT = re.compile(r'\n(?=, \{ "name" : ")')
_COUNT = re.compile(r'\s*\[\s*\{ "count" : (\d+) \}\s*')
_LAYER = re.compile(
    r', \{ "name" : "(?P<name>.*)", "timeMs" : \S+, "averageMs" : \S+, '
    r'"medianMs" : (?P<median>\S+), "percentage" : \S+ \}\s*',
    re.DOTALL,
)


def read(path: Path, flag: str) -> str:
    """Read the text of a file. Bytes that are not UTF-8 become escapes; line ends stay.

    flag   trtexec flag that writes such a file, or LOG

    Raises:
        BadMeasurement: it cannot be read, is empty, or another flag wrote it.
    """
    try:
        text = read_bytes(path, LARGEST_LIST).decode("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        raise BadMeasurement(f"{path} does not exist; {_mend(path, flag)}") from None
    except OSError as problem:
        raise BadMeasurement(f"{path} cannot be read: {problem.strerror}; give a file that trtexec wrote") from None
    if not text.strip():
        raise refused(path, flag, "it is empty")
    key = _KEY.match(text)
    other = FIRST.get(key[1], flag) if key else flag
    if other != flag:
        raise refused(path, flag, f"it was written by {other}")
    return text


def refused(path: Path, flag: str, problem: str) -> BadMeasurement:
    """Return the error for a file that `flag` did not write."""
    what = "log" if flag == LOG else f"{flag} file"
    return BadMeasurement(f"{path} is not a {what} of trtexec: {problem}; {_mend(path, flag)}")


def _mend(path: Path, flag: str) -> str:
    return "keep what trtexec prints" if flag == LOG else f"run trtexec again with {flag}={path.name}"


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
    text = read(path, TIMES)
    try:
        queries = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise refused(path, TIMES, f"it is truncated or not JSON ({problem})") from None
    if not isinstance(queries, list) or not queries:
        raise refused(path, TIMES, f"it contains {'no query' if queries == [] else 'no list of queries'}")
    try:
        return Times(
            tuple(_milliseconds(query, "computeMs") for query in queries),
            tuple(_milliseconds(query, "endEnqMs") - _milliseconds(query, "startEnqMs") for query in queries),
        )
    except ValueError as problem:
        raise refused(path, TIMES, str(problem)) from None


def _milliseconds(query: Any, field: str) -> float:
    value: Any = query.get(field) if isinstance(query, dict) else None
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"a query has {field} {value!r}, not a time")
    return float(value)


@dataclass(frozen=True)
class Layer:
    """One layer. Without detailed verbosity only the name is known.

    name      without the profile
    profile   number of its optimization profile, None if the engine has only one
    type      "kgen", "CaskConvolution", ...
    nodes     names of its ONNX nodes
    tactic    name of its kernel
    """

    name: str
    profile: int | None = None
    type: str = ""
    nodes: tuple[str, ...] = ()
    tactic: str = ""


def split_profile(name: str) -> tuple[str, int | None]:
    """Split a layer name: "Conv_0 [profile 1]" -> ("Conv_0", 1)."""
    found = _PROFILE.fullmatch(name)
    return (found["name"], int(found["number"])) if found else (name, None)


def read_layer_info(path: Path) -> tuple[Layer, ...]:
    """Return the layers in an --exportLayerInfo file, in order.

    Raises:
        BadMeasurement: it is not such a file, or is truncated.
    """
    text = read(path, INFO)
    try:
        data = json.loads(text, strict=False)
    except (ValueError, RecursionError) as problem:
        raise refused(path, INFO, f"it is truncated or not JSON ({problem})") from None
    if not isinstance(data, dict) or not isinstance(data.get("Layers"), list):
        raise refused(path, INFO, "it has no list 'Layers'")
    try:
        return tuple(_info(item) for item in data["Layers"])
    except ValueError as problem:
        raise refused(path, INFO, str(problem)) from None


def _info(item: Any) -> Layer:
    given = item.get("Name") if isinstance(item, dict) else item
    if not isinstance(given, str):
        raise ValueError(f"{str(item)[:80]!r} is neither a name nor an object with a Name")
    name, profile = split_profile(given)
    if isinstance(item, str):
        return Layer(name, profile)
    return Layer(
        name,
        profile,
        str(item.get("LayerType", "")),
        tuple(_NODE.findall(str(item.get("Metadata", "")))),
        str(item.get("TacticName", "")),
    )


@dataclass(frozen=True)
class LayerTime:
    """Median time of one layer over all queries, in milliseconds, and its name in the engine."""

    name: str
    median: float


def read_layer_times(path: Path) -> tuple[LayerTime, ...]:
    """Return the layer times in an --exportProfile file, in execution order.

    Raises:
        BadMeasurement: it is not such a file, or is truncated.
    """
    text = read(path, PROFILE).rstrip()
    if not text.endswith("]"):
        raise refused(path, PROFILE, "it is truncated")
    head, *lines = _SPLIT.split(text.removesuffix("]"))
    found = _COUNT.fullmatch(head)
    if found is None:
        raise refused(path, PROFILE, f"it starts with {head[:40]!r}, not with the number of queries")
    if int(found[1]) < 1:
        raise refused(path, PROFILE, "no query was profiled")
    return tuple(_time(line, path) for line in lines)


def _time(line: str, path: Path) -> LayerTime:
    found = _LAYER.fullmatch(line)
    try:
        if found is None:
            raise ValueError
        median = float(found["median"])
        if not math.isfinite(median):
            raise ValueError
    except ValueError:
        raise refused(path, PROFILE, f"this is not a layer: {line[:80]!r}") from None
    return LayerTime(found["name"], median)
