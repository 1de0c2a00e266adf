# SPDX-License-Identifier: Apache-2.0
"""Time every graph and the whole chain of every schedule.

secateur profile build/demo-btp
secateur profile build/bundle --trtexec --schedules btp-22 --workspace 1024 --html profile.html
secateur profile build/bundle --import results/run.files --out profile.json
"""

from __future__ import annotations

import argparse
import importlib
import shlex
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from secateur.terminal import engine_options, result_tables
from secateur.terminal.progress_bars import bars
from secateur.version import __version__

if TYPE_CHECKING:
    from secateur.profiling.results import Profiling

HELP = "times of every graph and schedule, here or by trtexec"
HERE = ("backend", "device", "threads", "image", "prompt", "rounds", "warmup", "new_tokens")
"""Options that do not apply to trtexec."""


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--schedules", default="all", help="schedules, as a,b; full is always included (default: all)")
    here = parser.add_argument_group("timed in this process")
    here.add_argument("--backend", help="ort, openvino, torch, trt or rtx (default: ort)")
    here.add_argument(
        "--device", help="cpu or cuda for ort and torch; cpu, gpu or npu for openvino (default: cpu; trt, rtx: cuda)"
    )
    here.add_argument("--threads", type=int, help="threads of the backend (default: all cores)")
    here.add_argument("--image", help="image file (default: noise; times do not depend on the content)")
    here.add_argument("--prompt", help="question (default: a short one)")
    here.add_argument("--rounds", type=int, help="timed questions of each schedule (default: 30)")
    here.add_argument("--warmup", type=int, help="questions asked before these (default: 3)")
    here.add_argument("--new-tokens", type=int, help="longest answer; decode steps are timed too (default: 8)")
    trtexec = parser.add_argument_group("timed by trtexec")
    trtexec.add_argument(
        "--trtexec",
        nargs="?",
        const="",
        metavar="PATH",
        help="build and time the graphs with this program (default: the trtexec of this machine)",
    )
    trtexec.add_argument("--work", type=Path, help="working folder of trtexec (default: BUNDLE/engines/trtexec)")
    trtexec.add_argument("--import", type=Path, dest="folder", metavar="DIR", help="folder with results of trtexec")
    engine_options.add_arguments(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=Path, help="write the result as JSON")
    output.add_argument("--html", type=Path, help="write a report as one HTML page")
    output.add_argument("--force", action="store_true", help="replace existing files")
    parser.set_defaults(command_line=shlex.join(["secateur", *argv]))


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.bundle.atomic import write_text

    _check(arguments)
    found = _here(arguments) if arguments.trtexec is None and arguments.folder is None else _trtexec(arguments)
    if arguments.out is not None:
        write_text(arguments.out, found.to_json())
    if arguments.html is not None:
        from secateur.profiling.report import report

        write_text(arguments.html, report(found))
    result = found.as_dict()
    if found.failures:
        named = textwrap.shorten(", ".join(failure.case for failure in found.failures), 100, placeholder=" ...")
        result["failed"] = f"{len(found.failures)} measurements failed: {named}"
    return result


def _check(arguments: argparse.Namespace) -> None:
    """Check the options and outputs before the work, which may take hours."""
    from secateur.bundle.atomic import check_file_free
    from secateur.errors import BadOutput, InputError

    if arguments.trtexec is not None and arguments.folder is not None:
        raise InputError("--trtexec runs it here, --import reads results of an earlier run; give one of them")
    if arguments.work is not None and arguments.trtexec is None:
        raise InputError(f"--work is {arguments.work}, but trtexec does not run; add --trtexec")
    if arguments.trtexec is None and (engines := engine_options.changed_flags(arguments)):
        raise InputError(f"{engines[0]} only applies to engines that trtexec builds; add --trtexec")
    given = [name for name in HERE if getattr(arguments, name) is not None]
    if given and (arguments.trtexec is not None or arguments.folder is not None):
        raise InputError(f"--{given[0].replace('_', '-')} does not apply to trtexec; leave it out")
    for path in filter(None, (arguments.out, arguments.html)):
        check_file_free(path, arguments.force)
    if arguments.out is not None and arguments.html is not None and arguments.out.resolve() == arguments.html.resolve():
        raise BadOutput(f"--out and --html are both {arguments.out}; choose two files")
    if arguments.html is not None:
        importlib.import_module("secateur.profiling.report")  # to fail now if a package is missing


def _here(arguments: argparse.Namespace) -> Profiling:
    from secateur.evaluation.run import select_schedules
    from secateur.machine import machine
    from secateur.profiling.chains import profiling
    from secateur.profiling.clocked import PROMPT, ClockSettings, clock
    from secateur.runtime import Bundle, Pipeline

    given = {name: getattr(arguments, name) for name in ("rounds", "warmup", "new_tokens")}
    settings = ClockSettings(**{name: value for name, value in given.items() if value is not None})
    prompt = PROMPT if arguments.prompt is None else arguments.prompt
    backend = arguments.backend or "ort"
    names = select_schedules(Bundle.load(arguments.bundle, verify=False).manifest.schedules, arguments.schedules)
    loaded = Pipeline.load(arguments.bundle, backend, arguments.threads, device=arguments.device, schedules=names)
    with loaded as vlm, bars() as progress:
        chains, graphs = clock(vlm, arguments.image, prompt, names, settings, progress)
        on = machine(vlm.describe())
        return profiling(vlm.bundle, backend, settings.rounds, on, arguments.command_line, chains, graphs)


def _trtexec(arguments: argparse.Namespace) -> Profiling:
    from secateur.engines import run_trtexec
    from secateur.engines.trtexec import FOLDER, TRTEXEC
    from secateur.evaluation.run import select_schedules
    from secateur.profiling.chains import profiling
    from secateur.profiling.imported import read_folder, timed_schedules
    from secateur.runtime import Bundle

    bundle = Bundle.load(arguments.bundle)
    names = select_schedules(bundle.manifest.schedules, arguments.schedules)
    folder = arguments.folder or arguments.work or bundle.root / FOLDER
    if arguments.trtexec is not None:
        recipe = engine_options.recipe(arguments, bundle, names, folder)
        tool = run_trtexec.find(arguments.trtexec)
        with bars() as progress:
            run_trtexec.run(recipe, tool, progress)
    elif arguments.schedules == "all":
        names = timed_schedules(bundle, folder)
    found = read_folder(bundle, folder, names)
    on = {**found.machine, "secateur": __version__}
    return profiling(bundle, TRTEXEC, None, on, arguments.command_line, found.chains, found.graphs, found.failures)


def show(result: dict[str, Any], console: Console) -> None:
    result_tables.show_profile(result, console)
