# SPDX-License-Identifier: Apache-2.0
"""Builds one plan in a process of its own, so that all of the builder's memory is given back before the next one.

    python -m secateur.engines.worker job.json

Exit code 0: the plan is written; 1: it could not be built. Either way the Result is beside the job, see `Job`.
The calls are those that TensorRT 10.3 to 11.x share.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.artifacts import read_json, to_json
from secateur.engines.device import libraries
from secateur.engines.manifest import Profile
from secateur.engines.recorder import Recorder, described, recorder
from secateur.engines.settings import Settings
from secateur.errors import BadEngine, BuildFailed, SecateurError
from secateur.files import write_bytes, write_text


@dataclass(frozen=True)
class Job:
    """What to build; paths are absolute."""

    onnx: str
    plan: str
    timing_cache: str
    result: str
    profiles: tuple[Profile, ...]
    settings: Settings


@dataclass(frozen=True)
class Result:
    """How it went. `memory` is what a context of the plan needs in bytes; `error` is "" if the plan was built."""

    memory: int = 0
    error: str = ""
    warnings: tuple[str, ...] = ()


def main(path: str) -> int:
    """Do the job in the file `path` and return the exit code."""
    job = read_json(Job, Path(path), BadEngine)
    try:
        result = build(job)
    except MemoryError:
        result = Result(error="the host is out of memory")
    except SecateurError as problem:
        result = Result(error=str(problem))
    write_text(Path(job.result), to_json(result))
    return 1 if result.error else 0


def build(job: Job) -> Result:
    """Parse the graph, build it strongly typed, write the plan and the timing cache.

    Raises:
        BackendMissing: TensorRT is not installed.
        BuildFailed: the parser or the builder refuses; the message is theirs.
        BadOutput: the plan cannot be written.
    """
    trt, _ = libraries()
    logger = trt.Logger(trt.Logger.WARNING)
    errors = recorder(trt)
    builder = trt.Builder(logger)
    builder.error_recorder = errors
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(job.onnx):
        found = [" ".join(str(parser.get_error(i)).split()) for i in range(parser.num_errors)]
        reason = "; ".join(found) or described(errors) or "no reason given"
        raise BuildFailed(f"TensorRT cannot parse it: {reason}; `secateur inspect` says which versions can")
    config = builder.create_builder_config()
    _configure(trt, builder, config, job)
    warning = _use_timing_cache(config, Path(job.timing_cache))
    errors.clear()  # what a damaged cache left there
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailed(f"TensorRT could not build it: {described(errors) or 'no reason given, see the log'}")
    write_bytes(Path(job.timing_cache), bytes(config.get_timing_cache().serialize()))
    del parser, network, config, builder  # their memory is needed to open the plan
    memory = _memory(trt, logger, errors, plan)
    write_bytes(Path(job.plan), plan)
    return Result(memory, warnings=(warning,) if warning else ())


def _configure(trt: Any, builder: Any, config: Any, job: Job) -> None:
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.settings.workspace_mib << 20)
    config.builder_optimization_level = job.settings.optimization_level
    config.max_aux_streams = job.settings.max_aux_streams
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    for made in job.profiles:
        profile = builder.create_optimization_profile()
        for name, shapes in made.ranges.items():
            profile.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if config.add_optimization_profile(profile) < 0:
            raise BuildFailed(f"TensorRT refuses the optimisation profile '{made.name}'")


def _use_timing_cache(config: Any, path: Path) -> str:
    """Let the builder use the cache in the file, or a new one; returns a warning if the file is of no use."""
    blob = path.read_bytes() if path.exists() else b""
    cache = config.create_timing_cache(blob)
    if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
        return ""
    config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    return f"{path} is damaged or of another device; it was made anew"


def _memory(trt: Any, logger: Any, errors: Recorder, plan: Any) -> int:
    """Bytes of activations that a context of `plan` needs; opening it shows that it is whole."""
    runtime = trt.Runtime(logger)
    runtime.error_recorder = errors
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise BuildFailed(f"the plan cannot be opened: {described(errors) or 'no reason given'}")
    return int(engine.device_memory_size_v2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
