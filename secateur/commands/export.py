# SPDX-License-Identifier: Apache-2.0
"""Calibrate, export segments and gates to ONNX, compare them with torch, and write a bundle.

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

from secateur.terminal import calibration_options, tables
from secateur.terminal.progress_bars import bars

HELP = "write a bundle of ONNX segments and gates"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    calibration_options.add_arguments(parser, argv)
    parser.add_argument(
        "--schedule", type=Path, nargs="+", default=[], help="files to bundle; calibrates only with --method"
    )
    parser.add_argument("--target", default="cpu", help="cpu, cuda or tensorrt (default: cpu)")
    parser.add_argument("--dtype", help="fp32, fp16 or bf16 (default: the target's)")
    parser.add_argument("--weights", help="for TensorRT: shared by all plans, or baked into each (default: shared)")
    parser.add_argument("--out", type=Path, help="bundle folder (default: build/MODEL-METHOD)")
    parser.add_argument("--share", type=Path, help="bundle of the same model and dtype whose weight files are linked")
    parser.add_argument("--force", action="store_true", help="replace an existing bundle")
    parser.add_argument("--all-rows", action="store_true", help="show every check, also passed ones of one kind")
    parser.add_argument("--no-check", action="store_true", help="skip the comparison with torch")
    group = parser.add_argument_group("integer weights of the decoder layers")
    group.add_argument("--quantize", help="int8 or int4 (default: weights stay in --dtype)")
    group.add_argument("--block-size", type=int, help="weights that share a scale (default: 32, for TensorRT 128)")
    flag = argparse.BooleanOptionalAction
    group.add_argument("--symmetric", action=flag, default=None, help="no zero points (default: the target's)")
    group.add_argument("--accuracy-level", type=int, help="0: exact, 4: activations are rounded to 8 bits (default: 0)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.api import plan_bundle
    from secateur.bundle.atomic import check_folder_free
    from secateur.bundle.reader import BUNDLE_FOLDER
    from secateur.bundle.schedule_file import read_schedule
    from secateur.errors import InputError
    from secateur.export.bundle import export, shared_weight_files
    from secateur.export.quantize import quantize_weights
    from secateur.export.quantized_graph import check_blocks
    from secateur.export.targets import target
    from secateur.load_model import load

    start = time.perf_counter()
    kind = target(arguments.target, arguments.dtype, arguments.weights)
    details = (arguments.block_size, arguments.symmetric, arguments.accuracy_level)
    integers = quantize_weights(arguments.quantize, kind, *details)
    schedules = [read_schedule(path) for path in arguments.schedule]
    calibrate = bool(arguments.method or not schedules)
    if not calibrate and (ignored := calibration_options.given_flags(arguments)):
        raise InputError(
            f"{', '.join(ignored)} would be ignored: schedules of --schedule are not changed; add --method to calibrate"
        )
    calibration = calibration_options.calibration(arguments)
    method = arguments.method or (schedules[0].method if schedules else calibration_options.METHOD)
    out = arguments.out or Path("build") / f"{Path(arguments.model.partition('@')[0]).name}-{method.replace(',', '-')}"
    check_folder_free(out, arguments.force, BUNDLE_FOLDER)
    family = load(arguments.model, revision=arguments.revision)
    check_blocks(family.decoder.layers, integers)
    if arguments.share:
        shared_weight_files(arguments.share, family, kind)
    with bars() as show:
        # calibrate in fp32, so that a schedule does not depend on the target
        families = calibration_options.families(arguments, family)
        plans = plan_bundle(families, schedules, calibration if calibrate else None, show)
        family.to(kind.torch_dtype)
        exported = export(
            plans,
            kind,
            out,
            force=arguments.force,
            verify=not arguments.no_check,
            share=arguments.share,
            quantization=integers,
            progress=show,
        )
    return {
        "bundle": str(out),
        "target": kind.name,
        "dtype": kind.dtype,
        "quantization": integers and str(integers),
        "opset": exported.manifest.opset,
        "graphs": [graph.name for graph in exported.manifest.graphs],
        "image_sizes": [plan.family.layout.size for plan in plans],
        "schedules": calibration_options.summaries([plan.schedules for plan in plans]),
        "warnings": list(exported.warnings),
        "parity": [dataclasses.asdict(p) for p in exported.parity],
        "worst_error": max((p.error for p in exported.parity), default=None),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
        "graph_seconds": exported.seconds,
        "seconds": round(time.perf_counter() - start, 1),
        **({"all_rows": True} if arguments.all_rows else {}),
    }


def show(result: dict[str, Any], console: Console) -> None:
    console.print(tables.schedules(result["schedules"]))
    if result["parity"]:
        console.print(tables.parity(result["parity"], result.get("all_rows", False)))
    else:
        console.print("not checked against torch (--no-check)")
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    console.print(
        f"wrote {result['bundle']}: {len(result['graphs'])} graphs, {result['bytes'] / 1e6:.1f} MB, "
        f"{result['seconds']} s (target {result['target']}, {result['quantization'] or result['dtype']}, "
        f"opset {result['opset']})"
    )
