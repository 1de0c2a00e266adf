# SPDX-License-Identifier: Apache-2.0
"""engines.json: the plans in a folder, what they were built from, and the platform that they are valid for.

A plan's key is the sha256 over everything that the plan is built from. On the same platform, equal keys mean equal
plans.

BUNDLE/engines/<gpu>-sm<sm>-<multiprocessors>mp-trt<version>/engines.json   Engines
                                                             <graph>-<key>.plan   one per graph, gates included
                                                             timing.cache   for that device and version
BUNDLE/engines/rtx-<version>-sm<sm>-sm<sm>/engines.json, <graph>-<key>.plan   the same, for all such GPUs
                                           <gpu>-sm<sm>-<multiprocessors>mp.kernels   see `runtime_cache`
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from secateur.bundle.layout import Layout
from secateur.bundle.manifest import GraphSpec, Manifest
from secateur.bundle.names import is_plain
from secateur.bundle.reader import ENGINES as ENGINES
from secateur.engines.platforms import Platform
from secateur.errors import BadEngine, InputError

ENGINES_FILE = "engines.json"
TIMING_CACHE = "timing.cache"
ONNX, WEIGHTS = ".onnx", ".data"
MAX_WORKSPACE_MIB = 1 << 20
LONGEST_PLAN = 255
"""Bytes of the name of a plan."""


@dataclass(frozen=True)
class Range:
    """Smallest, optimal and largest shape of one dynamic input in one optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """One optimization profile, "prefill" or "decode" (segments, embed, rotary) or "all": ranges of dynamic inputs."""

    name: str
    ranges: dict[str, Range]


@dataclass(frozen=True)
class EnginePlan:
    """One serialized engine.

    sha256   of the plan file
    source   key, see `plan_key`; a plan whose key is unchanged is not built again
    memory   bytes of activations that a context needs: device_memory_size_v2, or from the log of the builder
    seconds  build time
    """

    graph: str
    file: str
    sha256: str
    source: str
    profiles: tuple[Profile, ...]
    memory: int
    seconds: float

    def __post_init__(self) -> None:
        if not is_plain(self.file, LONGEST_PLAN, "._-@"):
            raise BadEngine(f"{ENGINES_FILE} names {self.file[:LONGEST_PLAN]!r}, which is outside its folder")
        if self.memory < 0 or not self.seconds >= 0:
            raise BadEngine(f"the plan '{self.graph}' needs {self.memory} bytes and took {self.seconds} s")


@dataclass(frozen=True)
class Limits:
    """Maximum sizes that the profiles allow: batch, text rows after the image at once, generated tokens."""

    batch: int = 1
    text: int = 256
    new_tokens: int = 128

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise BadEngine(f"the limit '{name}' is {value}; it must be at least 1")

    def capacity(self, layout: Layout) -> int:
        """Return the maximum number of KV cache rows: rows up to the end of the images, text, answer."""
        return layout.rows + self.text + self.new_tokens


@dataclass(frozen=True)
class BuilderSettings:
    """Options of a build apart from shapes, for both trtexec and the Python API.

    workspace_mib       maximum scratch memory of a layer; TensorRT's default is all device memory, which a Jetson
                        shares with the host
    optimization_level  0 (fast build) to 5 (fast engine)
    max_aux_streams     0 uses the least memory, and makes layer times add up
    """

    workspace_mib: int = 2048
    optimization_level: int = 3
    max_aux_streams: int = 0

    def __post_init__(self) -> None:
        for flag, value, most in (
            ("--workspace", self.workspace_mib, MAX_WORKSPACE_MIB),
            ("--optimization-level", self.optimization_level, 5),
            ("--max-aux-streams", self.max_aux_streams, 64),
        ):
            least = 1 if flag == "--workspace" else 0
            if not least <= value <= most:
                raise InputError(f"{flag} is {value}; it must be between {least} and {most}")


@dataclass(frozen=True)
class Engines:
    """Contents of engines.json. `flags` are the settings of the builder, such as workspace_mib and tf32."""

    platform: Platform
    limits: Limits
    flags: dict[str, int | str | bool]
    plans: tuple[EnginePlan, ...]
    schema: int = 2

    def __post_init__(self) -> None:
        if self.schema != 2:
            raise BadEngine(f"engines schema {self.schema} is not known; this version reads schema 2")
        if len({plan.graph for plan in self.plans}) < len(self.plans):
            raise BadEngine("a graph has several plans")

    def plan(self, graph: str) -> EnginePlan:
        """Return the plan of a graph.

        Raises:
            BadEngine: it has no plan.
        """
        for plan in self.plans:
            if plan.graph == graph:
                return plan
        raise BadEngine(f"there is no plan of the graph '{graph}'")

    @property
    def options(self) -> str:
        """Options of `secateur build` that give the same limits, each after a space; "" if they are the defaults."""
        usual = vars(Limits())
        changed = {name: value for name, value in vars(self.limits).items() if value != usual[name]}
        texts = [f" --max-{name.replace('_', '-')} {value}" for name, value in changed.items()]
        return "".join([*texts, " --masked-past" if self.masked_past else ""])

    @property
    def masked_past(self) -> int:
        """Number of masked rows that the past of a prefill must have: 0, unless the profiles start at 1."""
        pasts = [
            shapes.min[0]
            for plan in self.plans
            for profile in plan.profiles
            for name, shapes in profile.ranges.items()
            if profile.name == "prefill" and name.startswith("past_")
        ]
        return max(pasts, default=0)


def graph_files(manifest: Manifest, root: Path, graph: GraphSpec) -> tuple[str, ...]:
    """Return the graph's ONNX file and the weight files it references, which other graphs may share.

    root  folder of the bundle

    An ONNX file stores the names of its external files as plain text, and these files are in the same folder. So the
    names in the manifest are searched for in its bytes. A false match only causes an unnecessary build.
    """
    onnx = PurePosixPath(graph.file)
    text = (root / onnx).read_bytes()
    beside = (name for name in manifest.files if PurePosixPath(name).parent == onnx.parent and name.endswith(WEIGHTS))
    return (graph.file, *sorted(name for name in beside if PurePosixPath(name).name.encode() in text))


def identity(manifest: Manifest) -> str:
    """Return the sha256 (hex) over model, target and all graphs. Timings are valid for bundles with the same value."""
    graphs = {name: digest for name, digest in manifest.files.items() if name.endswith(ONNX)}
    return _digest([manifest.model.fingerprint, manifest.target, graphs])


def plan_key(
    manifest: Manifest,
    root: Path,
    graph: GraphSpec,
    profiles: Sequence[Profile],
    flags: Mapping[str, int | str | bool],
) -> str:
    """Return the sha256 (hex) over the graph's files, its profiles and the builder's flags.

    Uses the file hashes in the manifest, which `Bundle.load` has checked against the files.
    """
    return _digest(
        {
            "files": {name: manifest.files[name] for name in graph_files(manifest, root, graph)},
            "profiles": [dataclasses.asdict(profile) for profile in profiles],
            "flags": dict(flags),
        }
    )


def _digest(parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
