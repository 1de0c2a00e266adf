# SPDX-License-Identifier: Apache-2.0
"""Check a bundle's files and say what is in it.

secateur inspect build/demo-btp
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.commands import _report

HELP = "check a bundle and say what is in it"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.commands._options import summary
    from secateur.runtime import Bundle

    bundle = Bundle.load(arguments.bundle)
    manifest = bundle.manifest
    return {
        "bundle": str(arguments.bundle),
        "model": {
            "source": manifest.source,
            "family": manifest.model.family,
            "fingerprint": manifest.model.fingerprint,
        },
        "target": manifest.target,
        "dtype": manifest.dtype,
        "opset": manifest.opset,
        "vision_tokens": manifest.layout.vision_tokens,
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
        "schedules": {name: summary(bundle.schedule(name)) for name in manifest.schedules},
    }


def show(result: dict[str, Any], console: Console) -> None:
    model = result["model"]
    console.print(
        f"{result['bundle']}: {model['source']} ({model['family']}, {result['vision_tokens']} vision tokens), "
        f"target {result['target']}, {result['dtype']}, opset {result['opset']}; "
        f"{result['files']} files, all hashes right"
    )
    console.print(_report.schedules(result["schedules"]))
    graphs = _report.table("Graphs", "graph", "layers", "KiB")
    for graph in result["graphs"]:
        layers = ""
        if graph["layers"]:
            first, end = graph["layers"]
            layers = f"before {first}" if graph["kind"] == "gate" else f"{first} to {end - 1}"
        graphs.add_row(graph["name"], layers, f"{graph['bytes'] / 1024:.0f}")
    console.print(graphs)
