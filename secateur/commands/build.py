# SPDX-License-Identifier: Apache-2.0
"""Build TensorRT plans of a bundle on this device or for other GPUs, or print the equivalent trtexec commands.

secateur build build/bundle
secateur build build/bundle --engine rtx --sm 86,89
secateur build build/bundle --dry-run
secateur build build/bundle --script results/run.sh
"""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from secateur.terminal import engine_options, tables
from secateur.terminal.progress_bars import bars

if TYPE_CHECKING:
    from secateur.runtime import Bundle

TEXTS = ("build", "time")
"""Fields of the result that are shown whole: commands."""
HELP = "build TensorRT engines of a bundle, or print the commands"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="trt", help="trt (TensorRT, on the device) or rtx (default: trt)")
    parser.add_argument("--sm", help="compute capabilities for rtx, as 86,89,120 (default: 80, 86, 89, 120, 121)")
    engine_options.add_arguments(parser)
    trtexec = parser.add_argument_group("for a device without Python")
    trtexec.add_argument("--dry-run", action="store_true", help="print trtexec commands and write their input files")
    trtexec.add_argument("--out", type=Path, help="working folder of these commands (default: BUNDLE/engines/trtexec)")
    trtexec.add_argument("--script", type=Path, help="write a shell script, with its input files next to it")
    trtexec.add_argument("--force", action="store_true", help="replace an existing script")
    trtexec.add_argument("--schedules", help="schedules to time, as a,b, and whose graphs to build (default: all)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.engines.build import build
    from secateur.engines.device import this_device, this_platform
    from secateur.engines.library import DEFAULT, LIBRARIES, capabilities
    from secateur.engines.platforms import Platform
    from secateur.engines.shapes import profiles
    from secateur.engines.version import check_target
    from secateur.runtime import Bundle

    _check(arguments)
    bundle = Bundle.load(arguments.bundle)
    manifest = bundle.manifest
    check_target(manifest)
    if arguments.dry_run or arguments.script is not None:
        return _commands(arguments, bundle)
    room, usual, past, settings = engine_options.options(arguments, bundle)
    library = LIBRARIES[arguments.engine]()
    if library.portable:
        wanted = DEFAULT if arguments.sm is None else capabilities(arguments.sm)
        platform = Platform(library.name, library.version, wanted, None)
    else:
        platform = this_platform(library, this_device())
    library.check(manifest, platform.compute_capabilities)
    shapes = profiles(manifest, room, usual, past)
    with bars() as progress:
        built = build(bundle, platform, shapes, room, settings, progress)
    return {
        "folder": str(built.folder),
        **asdict(platform),
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


def _check(arguments: argparse.Namespace) -> None:
    """Check that the options can be combined and the script can be written."""
    from secateur.bundle.atomic import check_file_free
    from secateur.engines.library import LIBRARIES
    from secateur.errors import InputError, UnknownName

    if arguments.engine not in LIBRARIES:
        raise UnknownName("engine", arguments.engine, LIBRARIES)
    if LIBRARIES[arguments.engine].portable:
        _check_portable(arguments)
    elif arguments.sm is not None:
        raise InputError("--sm needs --engine rtx; TensorRT builds for the GPU of this machine")
    if arguments.script is not None:
        if arguments.dry_run:
            raise InputError("--dry-run prints the commands, --script writes them to a file; give one of them")
        check_file_free(arguments.script, arguments.force)
    elif arguments.force:
        raise InputError("--force only applies to --script; leave it out")
    if arguments.out is not None and not arguments.dry_run:
        raise InputError("--out needs --dry-run; a script has its files next to it, and plans are in the bundle")
    if arguments.schedules is not None and not arguments.dry_run and arguments.script is None:
        raise InputError("--schedules needs --dry-run or --script; the engines of a bundle are for all its schedules")


def _check_portable(arguments: argparse.Namespace) -> None:
    """Check that no option is given that only TensorRT has, and the compute capabilities."""
    from secateur.engines.library import capabilities
    from secateur.errors import InputError

    if arguments.dry_run or arguments.script is not None:
        raise InputError("--dry-run and --script are for trtexec of TensorRT; leave out --engine rtx")
    if "--optimization-level" in engine_options.changed_flags(arguments):
        raise InputError("--optimization-level changes nothing with --engine rtx; leave it out")
    if arguments.sm is not None:
        capabilities(arguments.sm)


def _commands(arguments: argparse.Namespace, bundle: Bundle) -> dict[str, Any]:
    from secateur.engines.script import folder_of, write_script
    from secateur.engines.trtexec import FOLDER
    from secateur.evaluation.run import select_schedules

    script: Path | None = arguments.script
    names = select_schedules(bundle.manifest.schedules, arguments.schedules or "all")
    folder = folder_of(script) if script is not None else arguments.out or bundle.root / FOLDER
    recipe = engine_options.recipe(arguments, bundle, names, folder)
    recipe.write(fresh=arguments.script is not None)
    if script is not None:
        write_script(recipe, script)
    return {
        "folder": str(recipe.folder),
        "script": None if script is None else str(script),
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
        lines = [f"# in {result['folder']}:"]
        lines += [shlex.join(command) for command in (*result["build"].values(), *result["time"].values())]
    for line in lines:
        console.print(line, markup=False, emoji=False, soft_wrap=True)


def _show_plans(result: dict[str, Any], console: Console) -> None:
    table = tables.table("Engines", "graph", "MB", "activations MB", "seconds", "")
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
