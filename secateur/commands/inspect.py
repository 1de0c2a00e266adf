# SPDX-License-Identifier: Apache-2.0
"""Check the files of a bundle and list its contents; lint it for TensorRT; compare it with fp32.

secateur inspect build/demo-btp
secateur inspect build/demo-tensorrt --tensorrt 10.16
secateur inspect build/demo-tensorrt --check --questions 120
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from secateur.errors import InputError
from secateur.terminal import tables
from secateur.terminal.progress_bars import bars

if TYPE_CHECKING:
    from secateur.runtime import Bundle

HELP = "check a bundle and list its contents"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--tensorrt", metavar="VERSION", help="lint for this version (default: the target's oldest)")
    parser.add_argument("--check", action="store_true", help="compare with the checkpoint in fp32 on torch")
    parser.add_argument("--questions", type=int, help="number of questions for --check (default: 60)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.runtime import Bundle

    if arguments.questions is not None and not arguments.check:
        raise InputError("--questions needs --check; add it")
    if arguments.questions is not None and arguments.questions < 1:
        raise InputError(f"--questions is {arguments.questions}; it must be at least 1")
    bundle = Bundle.load(arguments.bundle)
    result = _contents(bundle, arguments.bundle)
    failed = []
    if (lint := _lint(bundle, arguments.tensorrt)) is not None:
        result["lint"] = lint
        if findings := lint.get("findings"):
            failed.append(f"TensorRT {lint['tensorrt']} does not support {len(findings)} nodes of the bundle")
    if arguments.check:
        from secateur.evaluation.precision import QUESTIONS, compare

        with bars() as show_progress:
            found = compare(bundle, arguments.questions or QUESTIONS, show_progress)
        result["precision"] = dataclasses.asdict(found)
        failed += found.failures
    if failed:
        result["failed"] = "; ".join(failed)
    return result


def _lint(bundle: Bundle, version: str | None) -> dict[str, Any] | None:
    """Return the lint for TensorRT; None for a target without TensorRT, unless a version is given."""
    from secateur.engines.version import Version, floor

    wanted = floor(bundle.manifest.target, bundle.manifest.opset) if version is None else Version.parse(version)
    if wanted is None:
        return None
    if version is None and importlib.util.find_spec("onnx") is None:
        return {"skipped": "onnx is not installed; pip install 'secateur[export]'"}
    from secateur.export.lint import lint_bundle, operators_used
    from secateur.export.operators import caution

    return {
        "tensorrt": str(wanted),
        "caution": caution(wanted),
        "operators": [dataclasses.asdict(used) for used in operators_used(bundle, wanted)],
        "findings": [dataclasses.asdict(finding) for finding in lint_bundle(bundle, wanted)],
    }


def _contents(bundle: Bundle, folder: Path) -> dict[str, Any]:
    from secateur.bundle.graph_plan import runs
    from secateur.terminal.calibration_options import summary

    manifest = bundle.manifest
    return {
        "bundle": str(folder),
        "model": {
            "source": manifest.source,
            "family": manifest.model.family,
            "fingerprint": manifest.model.fingerprint,
        },
        "target": manifest.target,
        "dtype": manifest.dtype,
        "opset": manifest.opset,
        "vision_tokens": manifest.layout.vision_tokens,
        "image_sizes": [
            {
                "size": bucket.layout.size,
                "images": bucket.layout.images,
                "rows": bucket.layout.rows,
                "vision_tokens": bucket.layout.vision_tokens,
                "views": [list(view.grid) for view in bucket.layout.views],
                "fit": steps.fit,
            }
            for bucket, steps in zip(manifest.buckets, bundle.steps, strict=True)
        ],
        "sampling": dataclasses.asdict(bundle.prompt.sampling),
        "further_questions": bundle.prompt.next is not None,
        "one_question": bundle.prompt.one_question,
        "not_after_answers_with": list(bundle.prompt.answer.rewritten),
        "versions": manifest.versions,
        "files": len(manifest.files),
        "graphs": [
            {
                "name": graph.name,
                "kind": graph.kind,
                "layers": list(graph.layers) if graph.layers else None,
                "bytes": sum(
                    bundle.path(file).stat().st_size
                    for file in (graph.file, f"{graph.file}.data")
                    if file in manifest.files
                ),
                "inputs": {x.name: list(x.shape) for x in graph.inputs},
                "outputs": {x.name: list(x.shape) for x in graph.outputs},
            }
            for graph in manifest.graphs
        ],
        "schedules": {
            name: summary(bundle.schedule(run.schedule, run.manifest.layout.size))
            for name, run in runs(manifest).items()
        },
    }


def show(result: dict[str, Any], console: Console) -> None:
    model = result["model"]
    console.print(
        f"{result['bundle']}: {model['source']} ({model['family']}, {result['vision_tokens']} vision tokens), "
        f"target {result['target']}, {result['dtype']}, opset {result['opset']}; "
        f"{result['files']} files, all hashes correct",
        markup=False,
    )
    console.print(f"answers: {tables.settings(result['sampling'])}", markup=False, soft_wrap=True)
    if not result["further_questions"]:
        reason = f": {result['one_question']}" if result["one_question"] else ""
        console.print(f"one question in a conversation{reason}", markup=False, soft_wrap=True)
    if result["not_after_answers_with"]:
        listed = ", ".join(map(repr, result["not_after_answers_with"]))
        console.print(f"no further question after an answer with {listed}", markup=False, soft_wrap=True)
    console.print(tables.image_sizes(result["image_sizes"]))
    console.print(tables.schedules(result["schedules"]))
    graphs = tables.table("Graphs", "graph", "layers", "KiB")
    for graph in result["graphs"]:
        layers = ""
        if graph["layers"]:
            first, end = graph["layers"]
            layers = f"before {first}" if graph["kind"] == "gate" else f"{first} to {end - 1}"
        graphs.add_row(graph["name"], layers, f"{graph['bytes'] / 1024:.0f}")
    console.print(graphs)
    if "lint" in result:
        tables.lint(result["lint"], console)
    if "precision" in result:
        tables.precision(result["precision"], console)
