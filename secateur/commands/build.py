# SPDX-License-Identifier: Apache-2.0
"""Build TensorRT plans of a bundle on this device, or print the trtexec commands that do.

secateur build build/demo-btp
secateur build build/demo-btp --dry-run
secateur build build/demo-btp --script build/demo-btp/engines/trtexec/run.sh
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from secateur.commands import _report
from secateur.commands._progress import bars

if TYPE_CHECKING:
    from secateur.engines.recipe import Recipe

HELP = "build TensorRT engines of a bundle, or print the commands"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--schedule", help="the engines are best at its row counts (default: the one of median rows)")
    room = parser.add_argument_group("room")
    room.add_argument("--max-batch", type=int, default=1, help="samples at once (default: 1)")
    room.add_argument("--max-text", type=int, help="rows of a question with its template (default: 256)")
    room.add_argument("--max-new-tokens", type=int, help="rows of an answer (default: 128)")
    room.add_argument("--masked-past", action="store_true", help="begin with one masked row of past, not with none")
    builder = parser.add_argument_group("builder")
    builder.add_argument("--workspace", type=int, default=2048, metavar="MIB", help="memory limit (default: 2048)")
    builder.add_argument("--optimization-level", type=int, default=3, help="0 to 5, fast build to fast engine")
    builder.add_argument("--max-aux-streams", type=int, default=0, help="streams beside the main one (default: 0)")
    trtexec = parser.add_argument_group("for a device without Python")
    trtexec.add_argument("--dry-run", action="store_true", help="print trtexec commands, write the files they read")
    trtexec.add_argument("--script", type=Path, help="write the commands and files as a shell script, here")
    trtexec.add_argument("--out", type=Path, help="where the commands run (default: BUNDLE/engines/trtexec)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.engines.build import build
    from secateur.engines.device import this_device
    from secateur.engines.limits import limits
    from secateur.engines.past import first_past
    from secateur.engines.recipe import FOLDER, Recipe
    from secateur.engines.script import write_script
    from secateur.engines.settings import Settings
    from secateur.engines.shapes import cases, profiles
    from secateur.engines.target import check_target
    from secateur.engines.version import Version
    from secateur.engines.walk import usual_schedule
    from secateur.errors import InputError
    from secateur.runtime import Bundle

    settings = Settings(arguments.workspace, arguments.optimization_level, arguments.max_aux_streams)
    dry = arguments.dry_run or arguments.script is not None
    if arguments.out is not None and (arguments.script is not None or not dry):
        raise InputError("--out goes with --dry-run; a script has its files beside it, plans lie in the bundle")
    bundle = Bundle.load(arguments.bundle)
    manifest = bundle.manifest
    check_target(manifest)
    room = limits(manifest, arguments.max_batch, arguments.max_text, arguments.max_new_tokens)
    usual = usual_schedule(manifest, arguments.schedule)
    device = None if dry else this_device()
    version = Version.parse(device.tensorrt) if device else None
    past = first_past(version, arguments.masked_past)
    shapes = profiles(manifest, room, usual, past)
    if device is None:
        folder = arguments.script.absolute().parent if arguments.script else arguments.out or bundle.root / FOLDER
        recipe = Recipe(manifest, shapes, cases(manifest, room, past), settings, folder, bundle.root)
        recipe.write()
        if arguments.script:
            write_script(recipe, arguments.script)
        return _commands(recipe, arguments.script)
    check_target(manifest, version)
    with bars() as progress:
        built = build(bundle, device, shapes, room, settings, progress)
    return {
        "folder": str(built.folder),
        "device": vars(device),
        "schedule": usual,
        "limits": vars(room),
        "new": list(built.new),
        "warnings": list(built.warnings),
        "plans": [
            {
                "graph": plan.graph,
                "bytes": (built.folder / plan.file).stat().st_size,
                "memory": plan.memory,
                "seconds": plan.seconds,
            }
            for plan in built.engines.plans
        ],
    }


def _commands(recipe: Recipe, script: Path | None) -> dict[str, Any]:
    return {
        "folder": str(recipe.folder),
        "script": str(script) if script else None,
        "build": recipe.builds(),
        "time": recipe.times(),
    }


def show(result: dict[str, Any], console: Console) -> None:
    if "plans" in result:
        _show_plans(result, console)
        return
    if result["script"]:
        lines = [
            f"wrote {result['script']}: builds {len(result['build'])} plans, times {len(result['time'])} cases",
            f"input files and, later, results in {result['folder']}",
        ]
    else:
        commands = [["cd", result["folder"]], *result["build"].values(), *result["time"].values()]
        lines = [shlex.join(command) for command in commands]
    for line in lines:
        console.print(line, markup=False, emoji=False, soft_wrap=True)


def _show_plans(result: dict[str, Any], console: Console) -> None:
    table = _report.table("Engines", "graph", "MB", "activations MB", "seconds", "")
    for plan in result["plans"]:
        table.add_row(
            plan["graph"],
            f"{plan['bytes'] / 1e6:.1f}",
            f"{plan['memory'] / 1e6:.1f}",
            f"{plan['seconds']:.1f}",
            "built" if plan["graph"] in result["new"] else "unchanged",
        )
    console.print(table)
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    console.print(f"engines in {result['folder']}", markup=False, soft_wrap=True)
