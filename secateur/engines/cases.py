# SPDX-License-Identifier: Apache-2.0
"""Timing cases: each graph at the shapes that it has in the schedules, their input files, and the result files.

DIR/cases.json                  Cases
    <graph>.layers.json         --exportLayerInfo of the build, one per graph
    <case>.inputs/<n>.bin       values for --loadInputs
    <case>.times.json           --exportTimes
    <case>.profile.json         --exportProfile
    <case>.log                  console output of the run;  <graph>.build.log of the build

trtexec draws integer inputs from [-128, 127], which would be indices out of range, so --loadInputs reads their values
from files: raw bytes in C order. Its floats from [-1, 1] are suitable. Empty tensors need no values.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.atomic import write_bytes
from secateur.bundle.manifest import GraphSpec, Manifest, TensorSpec
from secateur.bundle.schedule import ENCODER_GATES
from secateur.bundle.strict_json import read_json
from secateur.errors import BadBundle, BadMeasurement

Ints = NDArray[np.int64]

CASES_FILE = "cases.json"
KINDS = ("encode", "prefill", "decode")


@dataclass(frozen=True)
class Case:
    """One graph at one set of input shapes.

    name       letters, digits, ".", "_", "-" and "@"; starts with the graph's name
    kind       encode (once per prompt), prefill (once per question) or decode (once per generated token)
    profile    number of the plan's optimization profile
    shapes     shape of every input, including static ones
    schedules  labels of `graph_plan.runs` that run the graph at these shapes, once or more often: the schedule's name,
               followed by @ and the image size if there are several
    """

    name: str
    graph: str
    kind: str
    profile: int
    shapes: dict[str, tuple[int, ...]]
    schedules: tuple[str, ...]

    @property
    def times(self) -> str:
        return f"{self.name}.times.json"

    @property
    def layer_times(self) -> str:
        return f"{self.name}.profile.json"

    @property
    def log(self) -> str:
        return f"{self.name}.log"

    @property
    def layers(self) -> str:
        return layers(self.graph)

    @property
    def inputs(self) -> str:
        """Folder of the input files."""
        return f"{self.name}.inputs"

    def __post_init__(self) -> None:
        for name in (self.name, self.graph):
            if not name or name[0] in ".-" or not all(c.isalnum() or c in "._-@" for c in name):
                raise BadMeasurement(f"case name '{name}' must be letters, digits, '.', '_', '-' and '@'")
        if self.kind not in KINDS:
            raise BadMeasurement(f"case '{self.name}' has the kind '{self.kind}'; use one of {', '.join(KINDS)}")
        if self.profile not in (0, 1):
            raise BadMeasurement(f"case '{self.name}' has the profile {self.profile}; it must be 0 or 1")
        if any(size < 0 for shape in self.shapes.values() for size in shape):
            raise BadMeasurement(f"case '{self.name}' has a shape with a negative size: {self.shapes}")


@dataclass(frozen=True)
class Cases:
    """Contents of cases.json. `bundle` is the `identity` of the timed bundle."""

    bundle: str
    cases: tuple[Case, ...]
    schema: int = 1

    def __post_init__(self) -> None:
        if self.schema != 1:
            raise BadMeasurement(f"cases schema {self.schema} is not known; this version reads schema 1")
        if len({case.name for case in self.cases}) < len(self.cases):
            raise BadMeasurement("two cases have the same name")

    @classmethod
    def read(cls, folder: Path) -> Cases:
        """Read the cases of a folder that `secateur build --dry-run` or --script wrote.

        Raises:
            BadMeasurement: the file is missing or invalid.
        """
        return read_json(cls, folder / CASES_FILE, BadMeasurement)


def layers(graph: str) -> str:
    """Return the file name for the layers of a graph's plan."""
    return f"{graph}.layers.json"


def input_values(manifest: Manifest, case: Case) -> dict[str, Ints]:
    """Return the integer inputs of a case by name, int64, in its shapes. Equal cases give equal values.

    Raises:
        BadBundle: an integer input has an unknown name.
    """
    graph = manifest.graph(case.graph)
    past = next((case.shapes[spec.name][0] for spec in graph.inputs if spec.name.startswith("past_")), 0)
    return {spec.name: _value(manifest, case, graph, spec, past) for spec in _integers(case, graph)}


def input_files(manifest: Manifest, case: Case) -> dict[str, str]:
    """Return the input-file path for each integer input, relative to the folder of the cases."""
    names = [spec.name for spec in _integers(case, manifest.graph(case.graph))]
    return {name: f"{case.inputs}/{name}.bin" for name in names}


def write_inputs(manifest: Manifest, case: Case, folder: Path) -> None:
    """Write the input files of a case into `folder`.

    Raises:
        BadOutput: a file cannot be written.
    """
    made = input_values(manifest, case)
    for name, file in input_files(manifest, case).items():
        write_bytes(folder / file, np.ascontiguousarray(made[name]).tobytes())


def _integers(case: Case, graph: GraphSpec) -> Iterator[TensorSpec]:
    return (spec for spec in graph.inputs if spec.dtype.startswith("int") and 0 not in case.shapes[spec.name])


def _value(manifest: Manifest, case: Case, graph: GraphSpec, spec: TensorSpec, past: int) -> Ints:
    shape = case.shapes[spec.name]
    columns = np.arange(shape[-1], dtype=np.int64)
    match spec.name.removeprefix("full_"):
        case "input_ids":
            row = columns % manifest.dimensions.vocabulary
        case "vision_index":
            row = _spread(manifest, graph.name)
        case "position_ids":  # in a decode step the cache may fill the whole context
            row = np.minimum(past + columns, manifest.dimensions.context - 1)
        case "attention_mask":  # the past of a prefill consists of masked rows
            row = (columns >= (past if case.kind == "prefill" else 0)).astype(np.int64)
        case "last_index":
            rows = case.shapes["hidden_states"][1]
            row = np.full(shape[-1], rows - 1, np.int64)
        case "question_position":
            row = np.full(shape[-1], manifest.layout.next_position, np.int64)
        case _:
            raise BadBundle(
                f"graph '{graph.name}' has the integer input '{spec.name}', for which no values are defined"
            )
    return np.broadcast_to(row, shape).astype(spec.dtype)


def _spread(manifest: Manifest, gate: str) -> Ints:
    """Return the ascending indices of a gate's input vision tokens, evenly spaced in each view."""
    for bucket in manifest.buckets:
        for ref in bucket.schedules.values():
            for number, found in enumerate(ref.gates):
                if found.graph != gate:
                    continue
                layout = bucket.layout
                members = layout.members[: len(layout.image_views) if found.kind in ENCODER_GATES else None]
                counts = ref.gates[number - 1].of_views if number else [len(own) for own in members]
                parts = [
                    own[np.arange(count, dtype=np.int64) * len(own) // max(1, count)]
                    for own, count in zip(members, counts, strict=True)
                ]
                return np.sort(np.concatenate(parts))
    raise BadBundle(f"no schedule runs the graph '{gate}'; export the bundle again")
