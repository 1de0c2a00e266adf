# SPDX-License-Identifier: Apache-2.0
"""Builds one plan, in a process of its own (see `jobs`)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.bundle.atomic import write_bytes
from secateur.bundle.regular_file import LARGEST_LIST, read_bytes
from secateur.engines.builder import Build, one_line
from secateur.engines.device import profile_difference
from secateur.engines.jobs import serve
from secateur.engines.library import LIBRARIES
from secateur.engines.manifest import BuilderSettings, Profile
from secateur.errors import BuildFailed


@dataclass(frozen=True)
class Job:
    """Task of a worker. Paths are absolute; `engine` is a key of LIBRARIES."""

    engine: str
    compute_capabilities: tuple[str, ...]
    onnx: str
    plan: str
    timing_cache: str
    profiles: tuple[Profile, ...]
    settings: BuilderSettings


@dataclass(frozen=True)
class Result:
    """Outcome of a job. `memory` is the size in bytes that a context needs."""

    memory: int
    warnings: tuple[str, ...] = ()


def build(job: Job) -> Result:
    """Build the graph, and write the plan and TensorRT's timing cache.

    Raises:
        BackendMissing: the library is not installed.
        BuildFailed: the parser or the builder fails (the message contains theirs), or the builder changes a profile.
        BadOutput: the plan cannot be written.
    """
    library = LIBRARIES[job.engine]()
    making = Build(library, Path(job.onnx), job.profiles, job.compute_capabilities, job.settings)
    timing_cache, warning = Path(job.timing_cache), ""
    if not library.portable:
        warning = _use_timing_cache(making.config, timing_cache)
        making.log.clear()  # errors about a damaged cache
    plan = making.plan()
    if not library.portable:
        write_bytes(timing_cache, bytes(making.config.get_timing_cache().serialize()))
    if library.portable:
        memory = max(making.activations())  # opening the plan would need a GPU
    else:
        log = making.log
        del making  # opening the plan needs its memory
        memory = _memory(library.trt, log, plan, job.profiles)
    write_bytes(Path(job.plan), plan)
    return Result(memory, (warning,) if warning else ())


def _use_timing_cache(config: Any, path: Path) -> str:
    """Use the timing cache in the file, or a new one. Return a warning if the file is not usable, else ""."""
    try:
        blob = read_bytes(path, LARGEST_LIST) if path.exists() else b""
    except OSError as problem:
        raise BuildFailed(f"{path} cannot be read: {problem.strerror}; remove it") from None
    cache = config.create_timing_cache(blob)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return ""
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return f"{path} is damaged or from another device; it was replaced"


def _memory(trt: Any, log: Any, plan: Any, profiles: Sequence[Profile]) -> int:
    """Open `plan`, check its profiles, and return the bytes of activations that a context needs."""
    runtime = trt.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildFailed(f"the plan cannot be opened: {one_line(log.errors) or 'no reason given'}")
    if difference := profile_difference(engine, profiles):
        raise BuildFailed(f"the plan has {difference}")
    return int(engine.device_memory_size_v2)


if __name__ == "__main__":
    sys.exit(serve(Job, build, Path(sys.argv[1])))
