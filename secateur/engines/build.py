# SPDX-License-Identifier: Apache-2.0
"""Build of a plan for every graph of a bundle, one after the other, each in a new process.

The name of a plan contains its key, so the plans of the previous build stay usable until all new plans are finished.
unfinished.json is written after every plan, and engines.json at the end. The next build continues after a build that
was killed at any time. Plans whose graph, profiles and flags are unchanged are kept.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from secateur.bundle.atomic import write_text
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle, sha256
from secateur.bundle.strict_json import read_json, to_json
from secateur.engines import worker
from secateur.engines.jobs import JobFailed, run_job
from secateur.engines.library import LIBRARIES
from secateur.engines.manifest import (
    ENGINES,
    ENGINES_FILE,
    TIMING_CACHE,
    BuilderSettings,
    EnginePlan,
    Engines,
    Limits,
    Profile,
    graph_files,
    plan_key,
)
from secateur.engines.platforms import Platform
from secateur.engines.worker import Job, Result
from secateur.errors import BackendMissing, BadEngine, BadOutput, BuildFailed
from secateur.progress import Progress, silent

LESS_MEMORY = (
    "if memory ran out, try a smaller --workspace, --optimization-level 2 (TensorRT only), and close the desktop"
)
SHORT_OF_MEMORY = ("memory", "alloc", "could not find any implementation", "no reason")
"""Words in TensorRT's messages about too little memory or workspace."""
UNFINISHED = "unfinished.json"
"""The engines.json of a build that has not finished."""
LARGE = 1 << 20
"""Bytes; fewer constants of a graph, such as norms and biases, are not worth a warning."""
Profiles = Mapping[str, tuple[Profile, ...]]


@dataclass(frozen=True)
class Built:
    """Result of a build: the folder, its engines, the graphs with a new plan, and warnings for the user."""

    folder: Path
    engines: Engines
    new: tuple[str, ...]
    warnings: tuple[str, ...]


def build(
    bundle: Bundle,
    platform: Platform,
    profiles: Profiles,
    limits: Limits,
    settings: BuilderSettings,
    progress: Progress = silent,
) -> Built:
    """Build the plans that are missing or out of date, in BUNDLE/engines/<platform>/.

    platform  what to build for; TensorRT must run on its device
    progress  called with (stage, graph, graphs done, number of graphs)

    Raises:
        BuildFailed: TensorRT could not build a graph, or the process was killed. Finished plans and the previous
            engines are kept.
        BadOutput: the folder cannot be written, or another build is running there.
    """
    manifest = bundle.manifest
    folder = bundle.root / ENGINES / platform.folder
    flags = LIBRARIES[platform.engine].flags(settings)
    keys = {
        graph.name: plan_key(manifest, bundle.root, graph, profiles[graph.name], flags) for graph in manifest.graphs
    }
    warnings: list[str] = []
    new: list[str] = []
    with build_lock(folder) as lock:
        plans = _kept(folder, platform, keys, warnings)
        engines = Engines(platform, limits, flags, tuple(plans.values()))
        for done, graph in enumerate(manifest.graphs):
            progress("build", graph.name, done, len(manifest.graphs))
            if graph.name in plans:
                continue
            plan, notes = _build(
                bundle, graph, folder, profiles[graph.name], keys[graph.name], settings, platform, lock
            )
            plans[graph.name] = plan
            new.append(graph.name)
            warnings += notes
            engines = dataclasses.replace(engines, plans=tuple(plans.values()))
            write_text(folder / UNFINISHED, to_json(engines))
        write_text(folder / ENGINES_FILE, to_json(engines))
        (folder / UNFINISHED).unlink(missing_ok=True)
        for path in folder.glob("*.plan"):
            if path.name not in {plan.file for plan in engines.plans}:
                path.unlink()
        progress("build", "", len(manifest.graphs), len(manifest.graphs))
    if repeated := repeated_weights(bundle, profiles):
        warnings.append(
            f"plans contain up to {repeated / 1e6:.0f} MB of weights once more, for their second profile; "
            "export with --weights shared to have them once for all plans"
        )
    return Built(folder, engines, tuple(new), tuple(warnings))


def repeated_weights(bundle: Bundle, profiles: Profiles) -> int:
    """Return the bytes of constants that plans of segments may contain again, because each profile has its own copy.

    0 if weights are inputs. TensorRT stores int4 weights once for all profiles, and a table of embeddings too.
    """
    manifest, repeated = bundle.manifest, 0
    if manifest.weights or manifest.quantization is not None:
        return 0
    for graph in manifest.segments:
        constants = sum((bundle.root / file).stat().st_size for file in graph_files(manifest, bundle.root, graph)[1:])
        repeated += constants * (len(profiles[graph.name]) - 1)
    return repeated if repeated >= LARGE else 0


@contextmanager
def build_lock(folder: Path) -> Iterator[int]:
    """Create the folder, remove partial files, and lock it against other builds until the block ends.

    Yields the file descriptor of the lock. A process that inherits it also holds the lock, until it exits.

    Raises:
        BadOutput: another build is running there, the folder cannot be written, or it or something in it is a link.
        BackendMissing: this system is not Linux.
    """
    try:
        import fcntl
    except ImportError:
        raise BackendMissing("plans are built on Linux, also in WSL; this system has no file locks of Unix") from None
    for path in (folder.parent, folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink() and (path != folder.parent or path.name == ENGINES):  # a bundle may come with links
            raise BadOutput(
                f"{path} is a link, which could lead out of the bundle; remove it, or move the bundle as a whole"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove_partial_files(folder)
            yield lock.fileno()
    except BlockingIOError:
        raise BadOutput(f"another build is running in {folder}; wait until it ends") from None
    except (FileExistsError, NotADirectoryError):
        raise BadOutput(f"output {folder} is not a folder; choose another one") from None
    except OSError as problem:
        raise BadOutput(f"{folder} cannot be written: {problem.strerror}; finished plans are kept") from None


def _kept(folder: Path, platform: Platform, keys: Mapping[str, str], warnings: list[str]) -> dict[str, EnginePlan]:
    """Return the plans in the folder that are still valid, and add warnings about damaged files."""
    kept: dict[str, EnginePlan] = {}
    for path in (folder / UNFINISHED, folder / ENGINES_FILE):
        if not path.exists():
            continue
        try:
            engines = read_json(Engines, path, BadEngine)
        except BadEngine as problem:
            warnings.append(f"{problem}; its plans are built again")
            continue
        for plan in () if engines.platform.differs(platform) else engines.plans:
            if plan.source != keys.get(plan.graph) or plan.graph in kept:
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
    key: str,
    settings: BuilderSettings,
    platform: Platform,
    lock: int,
) -> tuple[EnginePlan, tuple[str, ...]]:
    file, log = f"{graph.name}-{key[:12]}.plan", folder / f"{graph.name}.build.log"
    start = time.perf_counter()
    job = Job(
        engine=platform.engine,
        compute_capabilities=platform.compute_capabilities,
        onnx=str(bundle.path(graph.file)),
        plan=str(folder / file),
        timing_cache=str(folder / TIMING_CACHE),
        profiles=tuple(profiles),
        settings=settings,
    )
    try:
        # the process inherits the lock: if only this process is killed, the folder stays locked
        result = run_job(worker.__name__, job, Result, log, inherit=(lock,))
    except JobFailed as problem:
        raise _failed(graph.name, problem, log) from None
    finally:
        _remove_partial_files(folder)
    seconds = round(time.perf_counter() - start, 3)
    plan = EnginePlan(graph.name, file, sha256(folder / file), key, tuple(profiles), result.memory, seconds)
    return plan, tuple(f"{graph.name}: {warning}" for warning in result.warnings)


def _failed(graph: str, problem: JobFailed, log: Path) -> BuildFailed:
    if problem.signal:
        known = problem.signal in set(signal.Signals)  # not the real-time signals
        name = signal.Signals(problem.signal).name if known else f"signal {problem.signal}"
        reason = "most likely out of memory" if problem.signal == signal.SIGKILL else f"see {log}"
        return BuildFailed(f"the build of '{graph}' was killed ({name}), {reason}; {LESS_MEMORY}")
    short = any(word in str(problem).lower() for word in SHORT_OF_MEMORY)
    return BuildFailed(f"graph '{graph}': {problem}; the log is {log}{f'; {LESS_MEMORY}' if short else ''}")


def _remove_partial_files(folder: Path) -> None:
    for path in folder.glob(".*.partial-*"):
        path.unlink(missing_ok=True)
