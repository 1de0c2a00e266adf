# SPDX-License-Identifier: Apache-2.0
"""Timing cases: each graph at the shapes that it has in the schedules, and the files of the results.

DIR/cases.json                  Cases
    <graph>.layers.json         --exportLayerInfo of the build, one per graph
    <case>.inputs/<n>.bin       values for --loadInputs
    <case>.times.json           --exportTimes
    <case>.profile.json         --exportProfile
    <case>.log                  console output of the run;  <graph>.build.log of the build
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from secateur.bundle.strict_json import read_json
from secateur.errors import BadMeasurement

CASES_FILE = "cases.json"
KINDS = ("encode", "prefill", "decode")


@dataclass(frozen=True)
class Case:
    """One graph at one set of input shapes.

    name       letters, digits, ".", "_", "-" and "@"; starts with the graph's name
    kind       encode (once per prompt), prefill (once per question) or decode (once per generated token)
    profile    number of the plan's optimization profile
    shapes     shape of every input, including static ones
    schedules  labels of `graph_plan.runs` that run the graph once at these shapes: the schedule's name, followed by @
               and the image size if there are several
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
    """Contents of cases.json. `bundle` is the `identity` of the timed bundle, see plan_key.py."""

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
