# SPDX-License-Identifier: Apache-2.0
"""--exportLayerInfo: the layers of an engine and what they were made of.

    10.x  {"Layers": [...], "Bindings": ["input.1", ...]}
    11.x  {"Layers": [...], "I/O Tensors": [{"Name": ..., "IOMode": "Input", "DataType": "Half", ...}]}

Layers are names if the engine was built without detailed verbosity, else objects. Engines with several optimisation
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
FORMATS = ("Format/Datatype", "Format", "Datatype", "DataType")
"""Keys under which 10.x and 11.x say format and type of a tensor."""
_PROFILE = re.compile(r"(?P<name>.*?)\s*\[profile (?P<number>\d+)\]", re.DOTALL)
_NODE = re.compile(r"\[ONNX Layer: ([^\x1e\x1f]*)\]")


@dataclass(frozen=True)
class Tensor:
    """An input or output; `shape` has -1 where it is dynamic, `format` is text: "Row major linear FP16 format"."""

    name: str
    shape: tuple[int, ...]
    format: str


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
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    tactic: str = ""


@dataclass(frozen=True)
class LayerInfo:
    """Layers of an engine in order, and the names of its inputs and outputs."""

    layers: tuple[Layer, ...]
    tensors: tuple[str, ...]


def split_profile(name: str) -> tuple[str, int | None]:
    """ "Conv_0 [profile 1]" -> ("Conv_0", 1)"""
    found = _PROFILE.fullmatch(name)
    return (found["name"], int(found["number"])) if found else (name, None)


def read_layer_info(path: Path) -> LayerInfo:
    """The layers in a file.

    Raises:
        BadMeasurement: it is no such file, or is cut off.
    """
    try:
        data = json.loads(read(path, FLAG), strict=False)
    except (ValueError, RecursionError) as problem:
        raise refused(path, FLAG, f"it is cut off or no JSON ({problem})") from None
    if not isinstance(data, dict) or not isinstance(data.get("Layers"), list):
        raise refused(path, FLAG, "it has no list 'Layers'")
    tensors = data.get("Bindings", data.get("I/O Tensors", []))
    try:
        return LayerInfo(tuple(_layer(item) for item in data["Layers"]), tuple(_name(item) for item in _list(tensors)))
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
        tuple(_tensor(tensor) for tensor in _list(item.get("Inputs", []))),
        tuple(_tensor(tensor) for tensor in _list(item.get("Outputs", []))),
        str(item.get("TacticName", "")),
    )


def _tensor(item: Any) -> Tensor:
    name = _name(item)
    if isinstance(item, str):
        return Tensor(name, (), "")
    shape = _list(item.get("Dimensions", []))
    if any(type(size) is not int for size in shape):
        raise ValueError(f"the tensor '{name}' has the dimensions {shape!r}")
    return Tensor(name, tuple(shape), " ".join(str(item[key]) for key in FORMATS if key in item))


def _name(item: Any) -> str:
    name = item.get("Name") if isinstance(item, dict) else item
    if not isinstance(name, str):
        raise ValueError(f"{str(item)[:80]!r} is neither a name nor an object with a Name")
    return name


def _list(item: Any) -> list[Any]:
    if not isinstance(item, list):
        raise ValueError(f"{str(item)[:80]!r} is no list")
    return item
