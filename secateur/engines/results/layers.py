# SPDX-License-Identifier: Apache-2.0
"""Layers of an engine (--exportLayerInfo) and their times (--exportProfile).

--exportLayerInfo:

    {"Layers": [{"Name": "...", "LayerType": "kgen", "Metadata": "[ONNX Layer: ...]", "TacticName": "...", ...}], ...}

A layer is only a name if the engine was built without detailed verbosity. With several optimization profiles, names
end with "[profile N]". `Metadata` names the ONNX nodes, separated by the control characters 0x1E and 0x1F.

--exportProfile, one object per line:

    [
      { "count" : 200 }
    , { "name" : "Conv_0 + Relu_1", "timeMs" : 22.3, "averageMs" : 0.111, "medianMs" : 0.111, "percentage" : 10.9 }
    ]

Pitfall: trtexec does not escape quotes, backslashes and control characters in the names here. So the file may be
invalid JSON, or JSON with another name. Hence a parser of exactly this layout. Names may repeat.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.engines.results.file import read, refused

INFO, TIMES = "--exportLayerInfo", "--exportProfile"
_PROFILE = re.compile(r"(?P<name>.*?)\s*\[profile (?P<number>\d+)\]", re.DOTALL)
_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")
_SPLIT = re.compile(r'\n(?=, \{ "name" : ")')
_COUNT = re.compile(r'\s*\[\s*\{ "count" : (\d+) \}\s*')
_LAYER = re.compile(
    r', \{ "name" : "(?P<name>.*)", "timeMs" : \S+, "averageMs" : \S+, '
    r'"medianMs" : (?P<median>\S+), "percentage" : \S+ \}\s*',
    re.DOTALL,
)


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
    try:
        data = json.loads(read(path, INFO), strict=False)
    except (ValueError, RecursionError) as problem:
        raise refused(path, INFO, f"it is truncated or not JSON ({problem})") from None
    if not isinstance(data, dict) or not isinstance(data.get("Layers"), list):
        raise refused(path, INFO, "it has no list 'Layers'")
    try:
        return tuple(_info(item) for item in data["Layers"])
    except ValueError as problem:
        raise refused(path, INFO, str(problem)) from None


def _info(item: Any) -> Layer:
    name, profile = split_profile(_name(item))
    if isinstance(item, str):
        return Layer(name, profile)
    return Layer(
        name,
        profile,
        str(item.get("LayerType", "")),
        tuple(_NODE.findall(str(item.get("Metadata", "")))),
        str(item.get("TacticName", "")),
    )


def _name(item: Any) -> str:
    name = item.get("Name") if isinstance(item, dict) else item
    if not isinstance(name, str):
        raise ValueError(f"{str(item)[:80]!r} is neither a name nor an object with a Name")
    return name


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
    text = read(path, TIMES).rstrip()
    if not text.endswith("]"):
        raise refused(path, TIMES, "it is truncated")
    head, *lines = _SPLIT.split(text.removesuffix("]"))
    found = _COUNT.fullmatch(head)
    if found is None:
        raise refused(path, TIMES, f"it starts with {head[:40]!r}, not with the number of queries")
    if int(found[1]) < 1:
        raise refused(path, TIMES, "no query was profiled")
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
        raise refused(path, TIMES, f"this is not a layer: {line[:80]!r}") from None
    return LayerTime(found["name"], median)
