# SPDX-License-Identifier: Apache-2.0
"""trtexec commands with the same meaning from TensorRT 10.3 to 11.x: one to build each graph, one to time each case.

Options that are the default since version 11 are given explicitly for 10.x. Paths are relative to the folder of the
results and contain no comma, colon or quote, because trtexec interprets these. The grammar of values and the order of
--profile are those of samples/common/sampleOptions.cpp: shapes "name:1x3,name:2", split at the last colon; the three
ranges directly follow their --profile=N.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from secateur.bundle.atomic import write_text
from secateur.bundle.manifest import Manifest
from secateur.bundle.strict_json import to_json
from secateur.engines.cases import CASES_FILE, Case, Cases, input_files, layers, write_inputs
from secateur.engines.manifest import ENGINES, TIMING_CACHE, BuilderSettings, Profile, identity
from secateur.engines.shapes import dynamic
from secateur.errors import BadMeasurement, BadOutput

TRTEXEC = "trtexec"
FOLDER = f"{ENGINES}/{TRTEXEC}"
"""Default working folder of the commands, relative to the bundle."""
Shape = tuple[int, ...]


def build(graph: str, onnx: str, plan: str, profiles: Sequence[Profile], settings: BuilderSettings) -> list[str]:
    """Return the command that builds `plan` from the file `onnx` and exports its layers, without running it."""
    return [TRTEXEC, f"--onnx={onnx}", f"--saveEngine={plan}", *build_options(graph, profiles, settings)]


def build_options(graph: str, profiles: Sequence[Profile], settings: BuilderSettings) -> list[str]:
    """Return the arguments of a build, without the two files."""
    options = [
        "--stronglyTyped",
        "--noTF32",
        f"--memPoolSize=workspace:{settings.workspace_mib}M",
        f"--timingCacheFile={TIMING_CACHE}",
        f"--builderOptimizationLevel={settings.optimization_level}",
        f"--maxAuxStreams={settings.max_aux_streams}",
        "--profilingVerbosity=detailed",
        "--skipInference",
        f"--exportLayerInfo={layers(graph)}",
    ]
    for number, profile in enumerate(profiles):
        if len(profiles) > 1:
            options.append(f"--profile={number}")
        for which in ("min", "opt", "max"):
            found = {name: getattr(shapes, which) for name, shapes in profile.ranges.items()}
            if found:
                options.append(f"--{which}Shapes={_shapes(found)}")
    return options


def time(case: Case, plan: str, dynamic: Sequence[str], inputs: Mapping[str, str], profiles: int) -> list[str]:
    """Return the command that times `plan` at the shapes of `case`.

    dynamic   names of the inputs with a dynamic dimension
    inputs    file of each input that must not be random
    profiles  number of profiles of the plan
    """
    command = [TRTEXEC, f"--loadEngine={plan}"]
    if profiles > 1:
        command.append(f"--useProfile={case.profile}")
    if dynamic:
        command.append(f"--shapes={_shapes({name: case.shapes[name] for name in dynamic})}")
    if inputs:
        command.append("--loadInputs=" + ",".join(f"{name}:{path}" for name, path in inputs.items()))
    return [
        *command,
        "--useCudaGraph",
        "--noDataTransfers",
        "--useSpinWait",
        "--separateProfileRun",
        "--warmUp=500",
        "--duration=10",
        "--iterations=200",
        "--avgRuns=1",
        "--percentile=50,90,95,99",
        f"--exportTimes={case.times}",
        f"--exportProfile={case.layer_times}",
    ]


def _shapes(shapes: Mapping[str, Shape]) -> str:
    """Format shapes: "a:1x3x336x336,b:0x1"."""
    return ",".join(f"{name}:{'x'.join(map(str, shape))}" for name, shape in shapes.items())


@dataclass(frozen=True)
class Recipe:
    """All commands for a bundle in execution order: plans to build and cases to time.

    folder  working folder of the commands, with plans, inputs and results
    bundle  absolute folder of the bundle
    """

    manifest: Manifest
    profiles: Mapping[str, tuple[Profile, ...]]
    cases: tuple[Case, ...]
    settings: BuilderSettings
    folder: Path
    bundle: Path

    def builds(self, ending: str = "") -> dict[str, list[str]]:
        """Return the build command of each graph; the plan is called <graph>.plan plus this ending."""
        return {
            graph.name: build(
                graph.name,
                f"{self.bundle_path}/{graph.file}",
                f"{graph.name}.plan{ending}",
                self.profiles[graph.name],
                self.settings,
            )
            for graph in self.manifest.graphs
        }

    def times(self) -> dict[str, list[str]]:
        """Return the timing command of each case."""
        return {
            case.name: time(
                case,
                f"{case.graph}.plan",
                dynamic(self.manifest.graph(case.graph)),
                input_files(self.manifest, case),
                len(self.profiles[case.graph]),
            )
            for case in self.cases
        }

    @property
    def bundle_path(self) -> str:
        """Relative path from `folder` to the bundle."""
        return Path(os.path.relpath(self.bundle, self.folder.resolve())).as_posix()

    def write(self, fresh: bool = True) -> None:
        """Write the input files and cases.json into `folder`, and remove the results of previous timings.

        fresh  remove previous results of the same cases and the same bundle too

        Raises:
            BadOutput: a file cannot be written.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise BadOutput(f"output {self.folder} is not a folder; choose another one")
        new, old = Cases(identity(self.manifest), self.cases), None
        with suppress(BadMeasurement):
            old = Cases.read(self.folder)
        if old == new and not fresh:
            return
        for case in (*(old.cases if old else ()), *self.cases):
            shutil.rmtree(self.folder / case.inputs, ignore_errors=True)
            for file in (case.times, case.layer_times, case.log):
                with suppress(OSError):
                    (self.folder / file).unlink()
        for case in self.cases:
            write_inputs(self.manifest, case, self.folder)
        write_text(self.folder / CASES_FILE, to_json(new))
