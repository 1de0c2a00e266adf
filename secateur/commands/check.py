# SPDX-License-Identifier: Apache-2.0
"""Compare two backends on every graph of a bundle, with the same inputs. Needs Polygraphy.

secateur check build/demo-btp --against torch
secateur check build/demo-tensorrt --against ort --backend trt --schedules btp-22
secateur check build/demo-btp --against ort --device cuda
"""

from __future__ import annotations

import argparse
import dataclasses
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from secateur.errors import InputError
from secateur.terminal import tables
from secateur.terminal.progress_bars import bars

if TYPE_CHECKING:
    from secateur.runtime import Bundle
    from secateur.runtime.backends.base import Backend

HELP = "compare two backends on every graph of a bundle"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--against", required=True, help="reference backend: ort, openvino, torch, trt or rtx")
    parser.add_argument("--backend", default="ort", help="backend to check, as --against (default: ort)")
    parser.add_argument(
        "--device",
        help="its device: cpu or cuda for ort and torch; cpu, gpu or npu for openvino (default: cpu; trt, rtx: cuda)",
    )
    parser.add_argument("--model", help="checkpoint, for the backend torch (default: where the bundle came from)")
    parser.add_argument("--schedules", default="all", help="schedules, as a,b; full is always included (default: all)")
    parser.add_argument("--all-rows", action="store_true", help="show every graph, also equal ones of one kind")
    parser.add_argument("--atol", type=float, help="allowed difference (default: largest value times 1e-4, fp16 3e-2)")
    parser.add_argument("--rtol", type=float, help="allowed difference relative to the reference (default: 0)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.evaluation.backend_diff import Bounds, check_polygraphy, compare_backends
    from secateur.evaluation.run import select_schedules
    from secateur.runtime import Bundle

    usual = "cuda" if arguments.backend in ("trt", "rtx") else "cpu"
    if arguments.against == arguments.backend and arguments.device in (None, usual):
        raise InputError(
            f"--against and --backend are both '{arguments.backend}'; choose different backends or another --device"
        )
    for name in ("atol", "rtol"):
        value = getattr(arguments, name)
        if value is not None and not 0 <= value < float("inf"):
            raise InputError(f"--{name} is {value}; it must be at least 0 and finite")
    if arguments.model and "torch" not in (arguments.against, arguments.backend):
        raise InputError(f"--model {arguments.model} changes nothing: only the backend torch reads a checkpoint")
    bundle = dataclasses.replace(Bundle.load(arguments.bundle), checkpoint=arguments.model)
    schedules = select_schedules(bundle.manifest.schedules, arguments.schedules)
    check_polygraphy()
    bounds = Bounds(arguments.atol, arguments.rtol)
    with (
        closing(_open(arguments.against, bundle)) as reference,
        closing(_open(arguments.backend, bundle, arguments.device)) as candidate,
        bars() as show_progress,
    ):
        found = compare_backends(bundle, reference, candidate, schedules, bounds, show_progress)
    result: dict[str, Any] = {
        "bundle": str(arguments.bundle),
        "backend": arguments.backend,
        "device": arguments.device,
        "against": arguments.against,
        "schedules": schedules,
        "graphs": [{**dataclasses.asdict(graph), "passed": graph.passed, "worst": graph.worst.name} for graph in found],
    }
    if arguments.all_rows:
        result["all_rows"] = True
    if failed := [f"{graph.graph} ({graph.worst.walk})" for graph in found if not graph.passed]:
        result["failed"] = f"{arguments.backend} differs from {arguments.against} in {', '.join(failed)}"
    return result


def _open(name: str, bundle: Bundle, device: str | None = None) -> Backend:
    from secateur import plugins
    from secateur.runtime import backends

    opened: Backend = plugins.load(backends, name, "backend").Backend(bundle, device=device)
    return opened


def show(result: dict[str, Any], console: Console) -> None:
    """Print the output that differs most, and its schedule: of each graph, or of all equal ones of a kind."""
    place = f" on {result['device']}" if result["device"] else ""
    title = f"{result['backend']}{place} against {result['against']}"
    made = tables.table(title, "graph", "runs", "worst output", "in", "absolute", "relative", "")
    for column in made.columns:
        column.overflow = "fold"
    for name, graphs in tables.grouped(result["graphs"], "graph", result.get("all_rows", False)).items():
        worst = max((_worst(graph) for graph in graphs), key=lambda output: output["relative"])
        figures = f"{worst['absolute']:.2g}", f"{worst['relative']:.2g}"
        verdict = "ok" if graphs[0]["passed"] else "FAILED"
        runs = str(sum(graph["runs"] for graph in graphs))
        made.add_row(name, runs, worst["name"], worst["walk"], *figures, verdict)
    console.print(made)


def _worst(graph: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = next(output for output in graph["outputs"] if output["name"] == graph["worst"])
    return found
