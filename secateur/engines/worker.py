# SPDX-License-Identifier: Apache-2.0
"""Builds one plan in a separate process, so that all memory of the builder is freed before the next build.

    python -m secateur.engines.worker job.json

Exit code 0: the plan is written; 1: it could not be built. In both cases the Result is written to `Job.result`.
Uses only calls that TensorRT 10.3 to 11.x and TensorRT for RTX have in common; `library` has the others.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.bundle.atomic import write_bytes, write_text
from secateur.bundle.strict_json import read_json, to_json
from secateur.engines.device import build_log, described, profile_difference
from secateur.engines.library import LIBRARIES, TensorRT
from secateur.engines.manifest import BuilderSettings, Profile
from secateur.errors import BadEngine, BuildFailed, SecateurError


@dataclass(frozen=True)
class Job:
    """Task of a worker. Paths are absolute; `engine` is a key of LIBRARIES."""

    engine: str
    compute_capabilities: tuple[str, ...]
    onnx: str
    plan: str
    timing_cache: str
    result: str
    profiles: tuple[Profile, ...]
    settings: BuilderSettings


@dataclass(frozen=True)
class Result:
    """Outcome of a job. `memory` is the size in bytes that a context needs; `error` is "" if the plan was built."""

    memory: int = 0
    error: str = ""
    warnings: tuple[str, ...] = ()


def main(path: str) -> int:
    """Run the job in the file `path` and return the exit code."""
    job = read_json(Job, Path(path), BadEngine)
    try:
        result = build(job)
    except MemoryError:
        result = Result(error="the host is out of memory")
    except SecateurError as problem:
        result = Result(error=str(problem))
    except (OSError, RuntimeError, TypeError, ValueError) as problem:  # the bindings raise these too
        traceback.print_exc()
        result = Result(error=" ".join(str(problem).split()) or type(problem).__name__)
    write_text(Path(job.result), to_json(result))
    return 1 if result.error else 0


def build(job: Job) -> Result:
    """Parse the graph, build it strongly typed, and write the plan and TensorRT's timing cache.

    Raises:
        BackendMissing: the library is not installed.
        BuildFailed: the parser or the builder fails (the message contains theirs), or the builder changes a profile.
        BadOutput: the plan cannot be written.
    """
    library = LIBRARIES[job.engine]()
    trt, log = library.trt, build_log(library.trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job.onnx):
        found = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
        reason = "; ".join(found) or described(log) or "no reason given"
        raise BuildFailed(f"{library.title} cannot parse it: {reason}; `secateur inspect` shows which versions can")
    config = builder.create_builder_config()
    _configure(library, builder, config, job)
    warning = "" if library.portable else _use_timing_cache(config, Path(job.timing_cache))
    log.texts.clear()  # errors about a damaged cache
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        reason = described(log) or "no reason given, see the log"
        empty = any(0 in shapes.min for made in job.profiles for shapes in made.ranges.values())
        hint = "; if this TensorRT does not support empty tensors, build with --masked-past" if empty else ""
        raise BuildFailed(f"{library.title} could not build it: {reason}{hint}")
    if not library.portable:
        write_bytes(Path(job.timing_cache), bytes(config.get_timing_cache().serialize()))
    del parser, network, config, builder  # opening the plan needs their memory
    # opening a portable plan would need a GPU
    memory = log.memory if library.portable else _memory(trt, log, plan, job.profiles)
    write_bytes(Path(job.plan), plan)
    return Result(memory, warnings=(warning,) if warning else ())


def _configure(library: TensorRT, builder: Any, config: Any, job: Job) -> None:
    trt = library.trt
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.settings.workspace_mib << 20)
    config.max_aux_streams = job.settings.max_aux_streams
    config.clear_flag(trt.BuilderFlag.TF32)  # on by default; it rounds fp32 products to 10 bits
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    library.configure(config, job.settings, job.compute_capabilities)
    for made in job.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in made.ranges.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise BuildFailed(f"{library.title} refuses the optimization profile '{made.name}'")


def _use_timing_cache(config: Any, path: Path) -> str:
    """Use the timing cache in the file, or a new one. Return a warning if the file is not usable, else ""."""
    blob = path.read_bytes() if path.exists() else b""
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
        raise BuildFailed(f"the plan cannot be opened: {described(log) or 'no reason given'}")
    if difference := profile_difference(engine, profiles):
        raise BuildFailed(f"the plan has {difference}")
    return int(engine.device_memory_size_v2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
