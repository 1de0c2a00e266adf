# SPDX-License-Identifier: Apache-2.0
"""Every graph of a bundle -> a plan for this device, one at a time, each in a fresh process.

engines.json is written after every plan and names finished plans of this bundle only. A build that is killed at any
time goes on from there; a plan whose graph, profiles and flags are unchanged is kept.
"""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secateur.artifacts import GraphSpec, read_json, to_json
from secateur.engines.manifest import ENGINES, ENGINES_FILE, TIMING_CACHE, Device, Engines, Limits, Plan, Profile
from secateur.engines.settings import Settings
from secateur.engines.source import source
from secateur.engines.worker import Job, Result
from secateur.errors import BadEngine, BadOutput, BuildFailed
from secateur.files import write_text
from secateur.runtime.bundle import Bundle, sha256

LESS_MEMORY = "if memory ran out, try a smaller --workspace, --optimization-level 2, and close the desktop"
SHORT_OF_MEMORY = ("memory", "alloc", "could not find any implementation", "no reason")
"""What TensorRT's messages have in common where memory, or the workspace, was too small."""
Progress = Callable[[str, str, int, int], None]
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
    settings: Settings,
    progress: Progress = lambda stage, note, done, total: None,
) -> Built:
    """Build the plans that are missing or out of date, in BUNDLE/engines/<device>/.

    progress is told (stage, graph, graphs done, graphs in all).

    Raises:
        BuildFailed: TensorRT could not build a graph, or the process was killed; finished plans are kept.
        BadOutput: the folder cannot be written, or another build is at work there.
    """
    manifest = bundle.manifest
    folder = bundle.root / ENGINES / device.folder
    flags = {**dataclasses.asdict(settings), "strongly_typed": True, "profiling_verbosity": "detailed"}
    sources = {graph.name: source(manifest, graph, profiles[graph.name], flags) for graph in manifest.graphs}
    warnings: list[str] = []
    new: list[str] = []
    with _alone(folder):
        plans = _kept(folder, device, sources, warnings)
        engines = Engines(device, manifest.target, limits, flags, tuple(plans.values()))
        write_text(folder / ENGINES_FILE, to_json(engines))
        for done, graph in enumerate(manifest.graphs):
            progress("build", graph.name, done, len(manifest.graphs))
            if graph.name in plans:
                continue
            plan, said = _build(bundle, graph, folder, profiles[graph.name], sources[graph.name], settings)
            plans[graph.name] = plan
            new.append(graph.name)
            warnings += said
            engines = dataclasses.replace(engines, plans=tuple(plans.values()))
            write_text(folder / ENGINES_FILE, to_json(engines))
        progress("build", "", len(manifest.graphs), len(manifest.graphs))
    return Built(folder, engines, tuple(new), tuple(warnings))


def _kept(folder: Path, device: Device, sources: Mapping[str, str], warnings: list[str]) -> dict[str, Plan]:
    """Plans in the folder that would be built the same again."""
    path = folder / ENGINES_FILE
    if not path.exists():
        return {}
    try:
        engines = read_json(Engines, path, BadEngine)
    except BadEngine as problem:
        warnings.append(f"{problem}; every plan is built again")
        return {}
    if engines.device.differs(device):
        return {}
    kept = {}
    for plan in engines.plans:
        if plan.source == sources.get(plan.graph):
            if (folder / plan.file).is_file() and sha256(folder / plan.file) == plan.sha256:
                kept[plan.graph] = plan
            else:
                warnings.append(f"{folder / plan.file} is missing or damaged; it is built again")
    return kept


def _build(
    bundle: Bundle, graph: GraphSpec, folder: Path, profiles: Sequence[Profile], hashed: str, settings: Settings
) -> tuple[Plan, tuple[str, ...]]:
    file = f"{graph.name}.plan"
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
        code = _run([sys.executable, "-m", "secateur.engines.worker", str(spec)], folder / f"{graph.name}.build.log")
        result = _result(graph.name, code, Path(job.result), folder)
    seconds = round(time.perf_counter() - start, 3)
    plan = Plan(graph.name, file, sha256(folder / file), hashed, tuple(profiles), result.memory, seconds)
    return plan, tuple(f"{graph.name}: {warning}" for warning in result.warnings)


def _run(command: Sequence[str], log: Path) -> int:
    """Exit code of `command`, whose output goes to the file `log`. What it was writing when killed is removed."""
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
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


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other builds out of it for as long as the block runs."""
    import fcntl  # Windows lacks it, and can do everything else

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in folder.glob(".*.partial-*"):
                leftover.unlink(missing_ok=True)
            yield
    except BlockingIOError:
        raise BadOutput(f"another build is at work in {folder}; wait for it") from None
    except OSError as problem:
        raise BadOutput(f"{folder} cannot be written: {problem.strerror}; finished plans are kept") from None
