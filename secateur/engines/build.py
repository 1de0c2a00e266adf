# SPDX-License-Identifier: Apache-2.0
"""Every graph of a bundle -> a plan for this device, one at a time, each in a fresh process.

A plan's name holds the hash of what it was built from, so the plans of the last build stay as they are, and work,
until all new ones are there. unfinished.json is written after every plan, and becomes engines.json in the end. A build
that is killed at any time goes on from there; a plan whose graph, profiles and flags are unchanged is kept.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.bundle.atomic import write_text
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle, sha256
from secateur.bundle.strict_json import read_json, to_json
from secateur.engines.lock import alone
from secateur.engines.manifest import ENGINES, ENGINES_FILE, TIMING_CACHE, Device, EnginePlan, Engines, Limits, Profile
from secateur.engines.plan_key import source
from secateur.engines.settings import BuilderSettings
from secateur.engines.worker import ALWAYS, Job, Result
from secateur.errors import BadEngine, BuildFailed
from secateur.progress import Progress, silent

LESS_MEMORY = "if memory ran out, try a smaller --workspace, --optimization-level 2, and close the desktop"
SHORT_OF_MEMORY = ("memory", "alloc", "could not find any implementation", "no reason")
"""What TensorRT's messages have in common where memory, or the workspace, was too small."""
UNFINISHED = "unfinished.json"
"""Engines, as engines.json, of a build that has not ended."""
Profiles = Mapping[str, tuple[Profile, ...]]


@dataclass(frozen=True)
class Built:
    """What a build leaves: where the plans are, which of them are new, and warnings for the user."""

    folder: Path
    engines: Engines
    new: tuple[str, ...]
    warnings: tuple[str, ...]


def build(
    bundle: Bundle,
    device: Device,
    profiles: Profiles,
    limits: Limits,
    settings: BuilderSettings,
    progress: Progress = silent,
) -> Built:
    """Build the plans that are missing or out of date, in BUNDLE/engines/<device>/.

    progress is told (stage, graph, graphs done, graphs in all).

    Raises:
        BuildFailed: TensorRT could not build a graph, or the process was killed; finished plans and the engines that
            were there before are kept.
        BadOutput: the folder cannot be written, or another build is at work there.
    """
    manifest = bundle.manifest
    folder = bundle.root / ENGINES / device.folder
    flags = {**dataclasses.asdict(settings), **ALWAYS}
    sources = {
        graph.name: source(manifest, bundle.root, graph, profiles[graph.name], flags) for graph in manifest.graphs
    }
    warnings: list[str] = []
    new: list[str] = []
    with alone(folder) as lock:
        plans = _kept(folder, device, sources, warnings)
        engines = Engines(device, limits, flags, tuple(plans.values()))
        for done, graph in enumerate(manifest.graphs):
            progress("build", graph.name, done, len(manifest.graphs))
            if graph.name in plans:
                continue
            plan, said = _build(bundle, graph, folder, profiles[graph.name], sources[graph.name], settings, lock)
            plans[graph.name] = plan
            new.append(graph.name)
            warnings += said
            engines = dataclasses.replace(engines, plans=tuple(plans.values()))
            write_text(folder / UNFINISHED, to_json(engines))
        write_text(folder / ENGINES_FILE, to_json(engines))
        (folder / UNFINISHED).unlink(missing_ok=True)
        for path in folder.glob("*.plan"):
            if path.name not in {plan.file for plan in engines.plans}:
                path.unlink()
        progress("build", "", len(manifest.graphs), len(manifest.graphs))
    return Built(folder, engines, tuple(new), tuple(warnings))


def _kept(folder: Path, device: Device, sources: Mapping[str, str], warnings: list[str]) -> dict[str, EnginePlan]:
    """Plans in the folder that would be built the same again."""
    kept: dict[str, EnginePlan] = {}
    for path in (folder / UNFINISHED, folder / ENGINES_FILE):
        if not path.exists():
            continue
        try:
            engines = read_json(Engines, path, BadEngine)
        except BadEngine as problem:
            warnings.append(f"{problem}; its plans are built again")
            continue
        for plan in () if engines.device.differs(device) else engines.plans:
            if plan.source != sources.get(plan.graph) or plan.graph in kept:
                continue
            if (folder / plan.file).is_file() and sha256(folder / plan.file) == plan.sha256:
                kept[plan.graph] = plan
            else:
                warnings.append(f"{folder / plan.file} is missing or damaged; it is built again")
    return kept


def _build(
    bundle: Bundle,
    graph: GraphSpec,
    folder: Path,
    profiles: Sequence[Profile],
    hashed: str,
    settings: BuilderSettings,
    lock: int,
) -> tuple[EnginePlan, tuple[str, ...]]:
    file = f"{graph.name}-{hashed[:12]}.plan"
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            onnx=str(bundle.path(graph.file)),
            plan=str(folder / file),
            timing_cache=str(folder / TIMING_CACHE),
            result=str(Path(scratch) / "result.json"),
            profiles=tuple(profiles),
            settings=settings,
        )
        spec = Path(scratch) / "job.json"
        write_text(spec, to_json(job))
        command = [sys.executable, "-m", "secateur.engines.worker", str(spec)]
        code = _run(command, folder / f"{graph.name}.build.log", lock)
        result = _result(graph.name, code, Path(job.result), folder)
    seconds = round(time.perf_counter() - start, 3)
    plan = EnginePlan(graph.name, file, sha256(folder / file), hashed, tuple(profiles), result.memory, seconds)
    return plan, tuple(f"{graph.name}: {warning}" for warning in result.warnings)


def _run(command: Sequence[str], log: Path, lock: int) -> int:
    """Exit code of `command`, whose output goes to the file `log`. What it was writing when killed is removed.

    lock  file descriptor that the process holds too: if only this one is killed, nobody else builds in the folder yet
    """
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, pass_fds=(lock,)) as process,
    ):
        try:
            return process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            for partial in log.parent.glob(f".*.partial-{process.pid}"):
                partial.unlink(missing_ok=True)


def _result(graph: str, code: int, path: Path, folder: Path) -> Result:
    log = folder / f"{graph}.build.log"
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        reason = "most likely for want of memory" if -code == signal.SIGKILL else f"see {log}"
        raise BuildFailed(f"the build of '{graph}' was killed ({name}), {reason}; {LESS_MEMORY}")
    result = (
        read_json(Result, path, BadEngine) if path.exists() else Result(error=f"the build ended with exit code {code}")
    )
    if result.error:
        short = any(word in result.error.lower() for word in SHORT_OF_MEMORY)
        raise BuildFailed(f"graph '{graph}': {result.error}; the log is {log}{f'; {LESS_MEMORY}' if short else ''}")
    return result
