# SPDX-License-Identifier: Apache-2.0
"""Calibrate, export segments and gates to ONNX, check them against torch, and write a bundle.

secateur export --method btp
secateur export --method btp --compression 0.78,0.89 --control --out build/demo-btp
secateur export --method all --compression 0.67,0.78,0.89
secateur export --schedule a.json b.json --target tensorrt
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.commands import _options, _report
from secateur.commands._progress import bars

HELP = "write a bundle of ONNX segments and gates"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    _options.add_arguments(parser, argv)
    parser.add_argument(
        "--schedule", type=Path, nargs="+", default=[], help="bundle these; calibrates only with --method"
    )
    parser.add_argument("--target", default="cpu", help="cpu, cuda, tensorrt or tensorrt-10.15 (default: cpu)")
    parser.add_argument("--dtype", help="fp32 or fp16 (default: the target's)")
    parser.add_argument("--out", type=Path, help="bundle folder (default: build/MODEL-METHOD)")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--no-check", action="store_true", help="skip the comparison with torch")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.calibration.files import read_schedule
    from secateur.errors import InputError
    from secateur.export.bundle import export
    from secateur.export.folder import check_free
    from secateur.export.targets import target
    from secateur.models.base import load
    from secateur.runtime.bundle import MANIFEST

    start = time.perf_counter()
    kind = target(arguments.target, arguments.dtype)
    schedules = [read_schedule(path) for path in arguments.schedule]
    calibrate = bool(arguments.method or not schedules)
    if not calibrate and (ignored := _options.given(arguments)):
        raise InputError(
            f"{', '.join(ignored)} would be ignored: --schedule bundles as they are; add --method to calibrate"
        )
    _options.requests(arguments)
    method = arguments.method or (schedules[0].method if schedules else _options.METHOD)
    out = arguments.out or Path("build") / f"{Path(arguments.model).name}-{method.replace(',', '-')}"
    check_free(out, arguments.force, MANIFEST)
    family = load(arguments.model)
    with bars() as show:
        if calibrate:  # in fp32 whatever the target, so that a schedule does not depend on it
            schedules += _options.make_schedules(arguments, family, show)
        family.to(kind.torch_dtype)
        exported = export(
            family,
            schedules,
            kind,
            out,
            force=arguments.force,
            verify=not arguments.no_check,
            progress=show,
        )
    return {
        "bundle": str(out),
        "target": kind.name,
        "dtype": kind.dtype,
        "opset": kind.opset,
        "graphs": [graph.name for graph in exported.manifest.graphs],
        "schedules": {s.name: _options.summary(s) for s in schedules},
        "parity": [dataclasses.asdict(p) for p in exported.parity],
        "worst_error": max((p.error for p in exported.parity), default=None),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "seconds": round(time.perf_counter() - start, 1),
    }


def show(result: dict[str, Any], console: Console) -> None:
    console.print(_report.schedules(result["schedules"]))
    if result["parity"]:
        console.print(_report.parity(result["parity"]))
    else:
        console.print("not checked against torch (--no-check)")
    console.print(
        f"wrote {result['bundle']}: {len(result['graphs'])} graphs, {result['bytes'] / 1e6:.1f} MB, "
        f"{result['seconds']} s (target {result['target']}, {result['dtype']}, opset {result['opset']})"
    )
