# SPDX-License-Identifier: Apache-2.0
"""trtexec commands with the same meaning from TensorRT 10.3 to 11.x: one to build a graph, one to time a case.

Options that are the default since version 11 are given explicitly for 10.x. Paths are relative to the folder of the
results and contain no comma, colon or quote, because trtexec interprets these. The grammar of values and the order of
--profile are those of samples/common/sampleOptions.cpp: shapes "name:1x3,name:2", split at the last colon; the three
ranges directly follow their --profile=N.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from secateur.engines.cases import Case, layers
from secateur.engines.manifest import TIMING_CACHE, BuilderSettings, Profile

TRTEXEC = "trtexec"
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
