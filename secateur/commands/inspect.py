# SPDX-License-Identifier: Apache-2.0
"""Check the files of a bundle and list its contents; lint it for TensorRT; compare it with fp32.

Of a checkpoint, list what it has, and what becomes of each: files, settings, tensors, rules of answers and template.

secateur inspect build/demo-btp
secateur inspect build/demo-tensorrt --tensorrt 10.16
secateur inspect build/demo-tensorrt --check --questions 120
secateur inspect --model demo
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from secateur.errors import InputError, SecateurWarning
from secateur.terminal import tables
from secateur.terminal.progress_bars import bars

if TYPE_CHECKING:
    from secateur.runtime import Bundle

HELP = "check a bundle or a checkpoint and list its contents"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path, nargs="?", help="folder of a bundle or a checkpoint")
    parser.add_argument("--model", help="checkpoint to list; with a bundle and --check: where the bundle came from")
    parser.add_argument("--tensorrt", metavar="VERSION", help="lint for this version (default: the target's oldest)")
    parser.add_argument("--check", action="store_true", help="compare with the checkpoint in fp32 on torch")
    parser.add_argument("--questions", type=int, help="number of questions for --check (default: 60)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.runtime import Bundle

    if arguments.questions is not None and not arguments.check:
        raise InputError("--questions needs --check; add it")
    if arguments.questions is not None and arguments.questions < 1:
        raise InputError(f"--questions is {arguments.questions}; it must be at least 1")
    if arguments.bundle is None and arguments.model is None:
        raise InputError("nothing to inspect; give the folder of a bundle, or --model CHECKPOINT")
    if arguments.bundle is None or (arguments.model is None and is_checkpoint(arguments.bundle)):
        if arguments.check or arguments.tensorrt:
            raise InputError("--check and --tensorrt need a bundle; give its folder, or leave them out")
        return _checkpoint(arguments.model or str(arguments.bundle))
    if arguments.model and not arguments.check:
        raise InputError(f"--model {arguments.model} changes nothing without --check; add it")
    bundle = dataclasses.replace(Bundle.load(arguments.bundle), checkpoint=arguments.model)
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


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder has the files of a checkpoint and none of a bundle."""
    from secateur.bundle.reader import MANIFEST

    return not (folder / MANIFEST).is_file() and any(
        (folder / name).is_file() for name in ("config.json", "adapter_config.json")
    )


def _checkpoint(source: str) -> dict[str, Any]:
    """Return the contents of a checkpoint, and whether it can be used."""
    from secateur.checkpoints.inventory import about
    from secateur.errors import SecateurError
    from secateur.load_model import check_usable, contents, load

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", SecateurWarning)
        items, result = contents(source), dict[str, Any]()
        try:
            family = load(source)
            check_usable(family)
            sampling, unsupported = family.generation
            items += [*family.unread, *about(sampling, family.prompt)]
            for text in unsupported:
                warnings.warn(text, SecateurWarning, stacklevel=1)
            result |= {"family": family.name, "vision_tokens": family.layout.vision_tokens}
        except SecateurError as problem:
            result["failed"] = str(problem)
    result |= {"checkpoint": source, "items": [dataclasses.asdict(item) for item in items]}
    result["warnings"] = [str(x.message) for x in told if issubclass(x.category, SecateurWarning)]
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
    if "checkpoint" in result:
        tables.checkpoint(result, console)
        return
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
