# SPDX-License-Identifier: Apache-2.0
"""--exportLayerInfo: the layers of an engine and what they were made of.

    {"Layers": [{"Name": "...", "LayerType": "kgen", "Metadata": "[ONNX Layer: ...]", "TacticName": "...", ...}], ...}

A layer is only a name if the engine was built without detailed verbosity. Engines with several optimisation
profiles end their names with "[profile N]". `Metadata` names the ONNX nodes, with the control characters
0x1E and 0x1F between them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.engines.results.file import read, refused

FLAG = "--exportLayerInfo"
_PROFILE = re.compile(r"(?P<name>.*?)\s*\[profile (?P<number>\d+)\]", re.DOTALL)
_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")


@dataclass(frozen=True)
class Layer:
    """A layer; of an engine without detailed verbosity only the name is known.

    name      without the profile
    profile   number of its optimisation profile, None where the engine has one
    type      "kgen", "CaskConvolution", ...
    nodes     names of the ONNX nodes in it
    tactic    name of its kernel
    """

    name: str
    profile: int | None = None
    type: str = ""
    nodes: tuple[str, ...] = ()
    tactic: str = ""


def split_profile(name: str) -> tuple[str, int | None]:
    """ "Conv_0 [profile 1]" -> ("Conv_0", 1)"""
    found = _PROFILE.fullmatch(name)
    return (found["name"], int(found["number"])) if found else (name, None)


def read_layer_info(path: Path) -> tuple[Layer, ...]:
    """The layers in a file, in order.

    Raises:
        BadMeasurement: it is not such a file, or is cut off.
    """
    try:
        data = json.loads(read(path, FLAG), strict=False)
    except (ValueError, RecursionError) as problem:
        raise refused(path, FLAG, f"it is cut off or not JSON ({problem})") from None
    if not isinstance(data, dict) or not isinstance(data.get("Layers"), list):
        raise refused(path, FLAG, "it has no list 'Layers'")
    try:
        return tuple(_layer(item) for item in data["Layers"])
    except ValueError as problem:
        raise refused(path, FLAG, str(problem)) from None


def _layer(item: Any) -> Layer:
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
