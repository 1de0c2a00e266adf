# SPDX-License-Identifier: Apache-2.0
"""Measure prefill, decode step and time to the first token on a GPU, against transformers and a FastV patch of it.

    python -m benchmarks.gpu --out build/gpu.json

It needs torch with CUDA and transformers, and takes no checkpoint: models have the shapes of LLaVA-1.5-7B and
Qwen2.5-VL-7B and random fp16 weights made on the device, shared by all contenders. Our segments and gates run one by
one and as CUDA graphs. Schedules are FastV's, at four compressions. `--tiny --device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from rich.console import Console
from torch import Tensor

from benchmarks.gpu_models import MODELS, Workload, pruned, workload
from benchmarks.gpu_segments import Recorded, Segments
from benchmarks.gpu_transformers import FastV, Transformers
from secateur.bundle.atomic import check_file_free, write_text
from secateur.bundle.schedule import FULL
from secateur.cli import one_line
from secateur.errors import BackendMissing, InputError, first_line
from secateur.runtime.backends.torch import check_cuda
from secateur.terminal import tables
from secateur.version import __version__

COMPRESSIONS = (0.5, 0.67, 0.78, 0.89)
"""Average shares of the vision tokens that a decoder layer does not process."""
FIGURES = ("ttft", "prefill", "decode")
WARM_UP = 2
"""Turns that are not counted."""


class Contender(Protocol):
    """One way to run the prompt of a workload; every call returns a token [1, 1] on the device."""

    name: str
    schedule: str

    @property
    def first_token(self) -> Callable[[], Tensor]: ...

    @property
    def prefill(self) -> Callable[[], Tensor]: ...

    @property
    def step(self) -> Callable[[], Tensor]: ...

    @property
    def rows_per_layer(self) -> Callable[[], list[int]]: ...


def contenders(given: Workload, steps: int) -> tuple[list[tuple[Contender, float]], list[dict[str, str]]]:
    """Return all contenders with their compression, and those that failed with the reason."""
    made: list[tuple[Contender, float]] = [(Transformers(given), 0.0)]
    failed = []
    for asked in (0.0, *COMPRESSIONS):
        schedule = pruned(given.family, asked) if asked else None
        compression = schedule.budget.compression if schedule else 0.0
        if schedule:
            (gate,) = schedule.gates
            made.append((FastV(given, schedule.name, gate.layer, gate.keep), compression))
        segments = Segments(given, schedule, steps)
        made.append((segments, compression))
        if given.device == "cuda":
            try:
                made.append((Recorded(segments), compression))
            except RuntimeError as problem:
                failed.append({"contender": "segments, CUDA graphs", "schedule": segments.schedule})
                failed[-1]["why"] = first_line(problem)
    return made, failed


def measure(given: Workload, rounds: int, steps: int) -> dict[str, Any]:
    """Alternate the contenders `rounds` times after a warm-up; return medians and quartiles in ms, and ratios."""
    made, failed = contenders(given, steps)
    times: list[dict[str, list[float]]] = [{figure: [] for figure in FIGURES} for _ in made]
    for turn in range(rounds + WARM_UP):
        for (contender, _), kept in zip(made, times, strict=True):
            found = _once(contender, steps, given.device)
            for figure in FIGURES if turn >= WARM_UP else ():
                kept[figure].append(found[figure])
    rows: list[dict[str, Any]] = [
        {
            "contender": contender.name,
            "schedule": contender.schedule,
            "compression": compression,
            "rows_per_layer": contender.rows_per_layer(),
            "tokens": answer(contender, steps),
            **{f"{figure}_ms": quartiles(kept[figure]) for figure in FIGURES},
        }
        for (contender, compression), kept in zip(made, times, strict=True)
    ]
    for row in rows:
        row["speed_up_over_full"] = _speed_up(row, _full(rows, row["contender"]))
        row["speed_up_over_transformers"] = _speed_up(row, _full(rows, Transformers.name))
    family = given.family
    return {
        "model": family.name,
        "shape": vars(family.dimensions),
        "image": list(family.bucket),
        "vision_tokens": family.layout.vision_tokens,
        "prompt_rows": given.rows,
        "weights_bytes": sum(weight.nbytes for weight in family.model.parameters()),
        "rows": rows,
        "failed": failed,
    }


def answer(contender: Contender, steps: int) -> list[int]:
    """Return the first token and `steps` more."""
    return [int(contender.first_token()), *(int(contender.step()) for _ in range(steps))]


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles (low, high) and number of values."""
    low, median, high = np.percentile(values, (25, 50, 75))
    return {"median": float(median), "low": float(low), "high": float(high), "n": len(values)}


def _once(contender: Contender, steps: int, device: str) -> dict[str, float]:
    """Return the milliseconds of the first token, of the prefill, and of one of `steps` decode steps after it."""

    def decode() -> None:
        for _ in range(steps):
            contender.step()

    found = {"ttft": _milliseconds(contender.first_token, device), "prefill": _milliseconds(contender.prefill, device)}
    return {**found, "decode": _milliseconds(decode, device) / steps}


def _milliseconds(work: Callable[[], object], device: str) -> float:
    """Return the time of `work`: between two events on the GPU's stream, or on the CPU of the clock."""
    if device == "cpu":
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) * 1e3
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    after.synchronize()
    return float(before.elapsed_time(after))


def _full(rows: Sequence[dict[str, Any]], contender: str) -> dict[str, Any] | None:
    """Return the row of a contender without pruning; the FastV patch of `full` is transformers itself."""
    wanted = Transformers.name if contender == FastV.name else contender
    return next((row for row in rows if (row["contender"], row["schedule"]) == (wanted, FULL)), None)


def _speed_up(row: dict[str, Any], reference: dict[str, Any] | None) -> dict[str, float] | None:
    if reference is None:
        return None
    return {figure: reference[f"{figure}_ms"]["median"] / row[f"{figure}_ms"]["median"] for figure in FIGURES}


def machine(device: str) -> dict[str, Any]:
    """Return the device and the versions that the figures depend on."""
    found: dict[str, Any] = {"device": "cpu", "threads": torch.get_num_threads()}
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found = {
            "device": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
            "driver": _driver(),
            "cuda": torch.version.cuda,
        }
    versions = {"secateur": __version__, "torch": str(torch.__version__), "transformers": transformers.__version__}
    return {**found, **versions, "python": ".".join(map(str, sys.version_info[:3]))}


def _driver() -> str | None:
    """Return the version of the GPU's driver, if nvidia-smi says it."""
    if (program := shutil.which("nvidia-smi")) is None:
        return None
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    said = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
    return said[0] if said else None


def show(console: Console, found: dict[str, Any]) -> None:
    """Print the medians of one model."""
    table = tables.table(
        f"{found['model']}, {found['vision_tokens']} vision tokens of {found['prompt_rows']} rows, median ms",
        *("contender", "schedule", "first token", "prefill", "decode step", "prefill over transformers"),
    )
    for row in found["rows"]:
        medians = (f"{row[f'{figure}_ms']['median']:.2f}" for figure in FIGURES)
        faster = row["speed_up_over_transformers"]["prefill"]
        table.add_row(row["contender"], row["schedule"], *medians, f"{faster:.2f}")
    console.print(table)
    for failed in found["failed"]:
        console.print(f"{failed['contender']}, {failed['schedule']}: not recorded: {failed['why']}", markup=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu.json"), help="result (default: build/gpu.json)")
    parser.add_argument("--force", action="store_true", help="replace the result of an earlier run")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each figure (default: 10)")
    parser.add_argument("--steps", type=int, default=16, help="decode steps of a measurement (default: 16)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="tiny models: to try the script, the times mean nothing")
    arguments = parser.parse_args()
    for name in ("rounds", "steps"):
        if getattr(arguments, name) < 1:
            raise InputError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.device == "cuda":
        try:
            check_cuda("this benchmark")
        except BackendMissing as problem:
            raise BackendMissing(f"{problem} --tiny, which only tries the script") from None
    check_file_free(arguments.out, arguments.force)
    start, dtype = time.perf_counter(), torch.float16 if arguments.device == "cuda" else torch.float32
    result: dict[str, Any] = {
        "schema": 1,
        "machine": machine(arguments.device),
        "dtype": str(dtype).removeprefix("torch."),
        **{name: getattr(arguments, name) for name in ("seed", "rounds", "steps", "tiny")},
        "models": [],
    }
    console = Console()
    for name in arguments.models:
        try:
            with torch.inference_mode():
                given = workload(name, arguments.device, dtype, arguments.tiny, arguments.seed)
                result["models"].append(measure(given, arguments.rounds, arguments.steps))
        except torch.OutOfMemoryError as problem:
            raise InputError(f"model '{name}' does not fit the GPU: {first_line(problem)}") from None
        show(console, result["models"][-1])
        del given
        gc.collect()
        if arguments.device == "cuda":
            torch.cuda.empty_cache()  # for the weights of the next model
    result["seconds"] = time.perf_counter() - start
    write_text(arguments.out, json.dumps(result, indent=2, allow_nan=False) + "\n")
    console.print(f"{arguments.out}: {result['seconds']:.0f} s", markup=False)


if __name__ == "__main__":
    sys.exit(one_line(main))
