# SPDX-License-Identifier: Apache-2.0
"""Compile the graphs of a bundle for TensorRT, without a GPU, and count kernels, copies and bytes.

secateur audit build/bundle
secateur audit build/bundle --graphs segment_0,btp-22.0 --sm 89
secateur audit build/bundle --schedule btp-22 --html audit.html

Needs TensorRT for RTX: pip install 'secateur[rtx]'. It does not compile for all devices; 86 is nearest to Orin.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.terminal import audit_tables, engine_options
from secateur.terminal.progress_bars import bars

HELP = "what TensorRT's compiler makes of each graph, without a GPU"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--graphs", help="graphs to compile, as a,b (default: all)")
    parser.add_argument("--sm", default="86", help="compute capabilities: 75, 80, 86, 89, 120, 121 (default: 86)")
    engine_options.add_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--html", type=Path, help="write a report as one HTML page")
    output.add_argument("--force", action="store_true", help="replace an existing page")
    parser.set_defaults(command_line=shlex.join(["secateur", *argv]))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.audit.report import report
    from secateur.audit.run import audit
    from secateur.bundle.atomic import check_file_free, write_text
    from secateur.engines.library import TensorRTForRTX, capabilities
    from secateur.engines.shapes import profiles
    from secateur.engines.version import check_target
    from secateur.errors import InputError
    from secateur.runtime import Bundle

    chosen = capabilities(arguments.sm)
    if arguments.html is not None:
        check_file_free(arguments.html, arguments.force)
    elif arguments.force:
        raise InputError("--force only applies to --html; leave it out")
    if "--optimization-level" in engine_options.changed_flags(arguments):
        raise InputError("--optimization-level changes nothing with TensorRT for RTX; leave it out")
    bundle = Bundle.load(arguments.bundle)
    manifest = bundle.manifest
    check_target(manifest)
    TensorRTForRTX().check(manifest, chosen)
    every = [graph.name for graph in manifest.graphs]
    named = every if arguments.graphs is None else arguments.graphs.split(",")
    graphs = [manifest.graph(name).name for name in dict.fromkeys(named)]
    room, usual, past, settings = engine_options.options(arguments, bundle)
    shapes = profiles(manifest, room, usual, past)
    with bars() as progress:
        found = audit(bundle, graphs, shapes, chosen, settings, room, usual, arguments.command_line, progress)
    if arguments.html is not None:
        write_text(arguments.html, report(found))
    result = found.as_dict()
    if found.problems:
        more = f" (and {len(found.problems) - 1} more)" if len(found.problems) > 1 else ""
        result["failed"] = f"{found.problems[0]}{more}"
    return result


def show(result: dict[str, Any], console: Console) -> None:
    audit_tables.show(result, console)
