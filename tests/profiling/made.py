# SPDX-License-Identifier: Apache-2.0
"""Folders with results of trtexec, and a fake trtexec that only writes files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from secateur.bundle.manifest import Manifest
from secateur.bundle.strict_json import to_json
from secateur.engines.cases import CASES_FILE, Case, Cases
from secateur.engines.manifest import identity
from secateur.engines.shapes import cases, limits
from secateur.profiling.results import ChainTimes, Failure, GraphTimes, LayerLine, Profiling, Spread

RUNS = (1.0, 1.0, 1.5, 1.0)
"""What the milliseconds of a case are multiplied by, in each of its queries."""


def log(enqueue: float = 0.05, result: str = "PASSED", error: str = "", warning: str = "") -> str:
    """Return console output of 10.16."""
    at = "[11/20/2025-10:00:00]"
    lines = ["&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b72] # trtexec", f"{at} [I] Selected Device: Orin"]
    lines += [f"{at} [{level}] {text}" for level, text in (("E", error), ("W", warning)) if text]
    lines.append(f"{at} [I] Enqueue Time: min = 0 ms, max = 1 ms, mean = 0.5 ms, median = {enqueue} ms")
    return "\n".join([*lines, f"&&&& {result} TensorRT.trtexec [TensorRT v101600] [b72] # trtexec", ""])


def times(milliseconds: float) -> str:
    """Return the --exportTimes file for RUNS."""
    return json.dumps(
        [
            {"startEnqMs": 0, "endEnqMs": 0.04, "computeMs": milliseconds * r, "latencyMs": milliseconds * r}
            for r in RUNS
        ]
    )


def usual_cases(manifest: Manifest) -> tuple[Case, ...]:
    """Return the cases that `secateur build --script` writes for a bundle."""
    return cases(manifest, limits(manifest))


def folder(manifest: Manifest, where: Path, shown: Sequence[Case], milliseconds: Callable[[Case], float]) -> Path:
    """Write the results of all cases, with the layers of gates."""
    where.mkdir()
    (where / CASES_FILE).write_text(to_json(Cases(identity(manifest), tuple(shown))))
    for case in shown:
        (where / case.times).write_text(times(milliseconds(case)))
        (where / case.log).write_text(log())
        if "." in case.graph:
            layers = "".join(
                f', {{ "name" : "{name}", "timeMs" : 1, "averageMs" : {ms}, "medianMs" : {ms}, "percentage" : 9 }}\n'
                for name, ms in (("mul [/red] [profile 0]", 0.2), ('say "top" [profile 0]', 0.8))
            )
            (where / case.layer_times).write_text(f'[\n  {{ "count" : 4 }}\n{layers}]\n')
            said = '{"Layers": [{"Name": "say \\"top\\"", "LayerType": "kgen", "Metadata": "[ONNX Layer: /top/TopK]"}]}'
            (where / case.layers).write_text(said)
    return where


PROGRAM = '''#!{python}
"""Writes what trtexec writes. Graphs named in $FAIL cannot be built."""
import os, pathlib, sys
flags = dict(word.partition("=")[::2] for word in sys.argv[1:])
name = " ".join(sys.argv)
graph = pathlib.Path(flags.get("--saveEngine", flags.get("--loadEngine"))).name.partition(".plan")[0]
print("&&&& RUNNING TensorRT.trtexec [TensorRT v100300] # " + name)
if graph in os.environ.get("FAIL", "").split(","):
    print("[11/20/2025-10:00:00] [E] Error[2]: OutOfMemory")
    print("&&&& FAILED TensorRT.trtexec [TensorRT v100300] # " + name)
    sys.exit(1)
if "--onnx" in flags:
    assert pathlib.Path(flags["--onnx"]).is_file()
    pathlib.Path(flags["--saveEngine"]).write_text("plan")
    pathlib.Path(flags["--exportLayerInfo"]).write_text('{{"Layers": ["layer"], "Bindings": []}}')
else:
    pairs = filter(None, flags.get("--loadInputs", "").split(","))
    assert all(pathlib.Path(pair.rpartition(":")[2]).is_file() for pair in pairs)
    pathlib.Path(flags["--exportTimes"]).write_text({times!r})
    pathlib.Path(flags["--exportProfile"]).write_text('[\\n  {{ "count" : 4 }}\\n]\\n')
print("&&&& PASSED TensorRT.trtexec [TensorRT v100300] # " + name)
'''


def program(where: Path) -> Path:
    """Write a fake trtexec, for which every case takes one millisecond."""
    where.write_text(PROGRAM.format(python=sys.executable, times=times(1.0)))
    where.chmod(0o755)
    return where


def profiling() -> Profiling:
    """Return a profile by trtexec of two schedules, with everything that a report shows."""

    def spread(ms: float) -> Spread:
        return Spread(ms, ms * 1.1, ms * 1.2, ms * 1.5, 0.05)

    def total(ms: float) -> Spread:
        return Spread(ms, None, None, ms * 1.5, None)

    layers = (
        LayerLine('top <b>"k"</b>\x1e[/red]', "kgen", ("/top/TopK", "/cut/Gather"), 0.03, 0.75, True),
        LayerLine("mul", "kgen", (), 0.01, 0.25, False),
    )

    def graph(name: str, kind: str, ms: float, shares: dict[str, float], **more: Any) -> GraphTimes:
        of, _, part = name.rpartition(".")
        usual = {"part": part, "enqueue": 0.1, "bound": False, "shares": shares}
        return GraphTimes(name, of, kind, runs=200, compute=spread(ms), **{**usual, **more})

    graphs = (
        graph("vision.encode", "vision", 4.0, {"full": 0.4, "btp-22": 0.6}),
        graph("segment_0.prefill", "segment", 6.0, {"full": 0.6}),
        graph("segment_0.less", "segment", 2.0, {"btp-22": 0.3}, part="prefill"),
        graph("btp-22.0.prefill", "gate", 0.6, {"btp-22": 0.1}, enqueue=0.9, bound=True, layers=layers),
        graph("segment_0.decode", "segment", 1.0, {"full": 1.0}),
    )
    stages = {"vision": 4.0, "projector": 0.0, "embed": 0.0, "segments": 6.0, "gates": 0.0}
    full = ChainTimes("full", "full", 144.0, 1.0, total(4), total(6), total(10), total(1), stages, 0.0, 1.0, 1.0)
    fewer = stages | {"segments": 2.0, "gates": 0.6}
    btp = ChainTimes(
        "btp-22", "btp", 32.0, 0.22, total(4), total(2.6), total(6.6), None, fewer, 0.09, 10 / 6.6, 6 / 2.6
    )
    return Profiling(
        bundle="demo-trt",
        model="demo",
        target="tensorrt",
        dtype="fp16",
        source="trtexec",
        apart=True,
        rounds=None,
        machine={"GPU": "Orin", "TensorRT": "10.3"},
        command="secateur profile bundle --import run.files",
        chains=(full, btp),
        graphs=graphs,
        advice=("The GPU may wait for the host (enqueue over compute): btp-22.0.prefill.",),
        failures=(Failure("embed.decode", "trtexec failed: Error[2]: OutOfMemory"),),
    )
