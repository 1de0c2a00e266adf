# SPDX-License-Identifier: Apache-2.0
"""Ask every schedule of a bundle the same questions and compare the answers with those of `full`.

secateur eval build/demo-btp --task demo --questions 600
secateur eval build/llava-btp --task pope --data pope/llava_pope_test.jsonl --answers pope/coco --images pope/val2014
secateur eval build/demo-btp --task demo --html report.html --out report.json
"""

from __future__ import annotations

import argparse
import importlib
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.terminal import result_tables
from secateur.terminal.progress_bars import bars

HELP = "score, retention and time of every schedule"
OVERLAYS = 4


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    from secateur import plugins
    from secateur.evaluation import tasks

    parser.add_argument("bundle", type=_path)
    parser.add_argument("--task", default="demo", help=f"{', '.join(plugins.names(tasks))} (default: demo)")
    parser.add_argument("--schedules", default="all", help="schedules, as a,b; full is always included (default: all)")
    parser.add_argument("--backend", default="ort", help="ort, openvino, torch, trt or rtx (default: ort)")
    parser.add_argument(
        "--device", help="cpu or cuda for ort and torch; cpu, gpu or npu for openvino (default: cpu; trt, rtx: cuda)"
    )
    parser.add_argument("--threads", type=int, help="threads of the backend (default: all cores)")
    data = parser.add_argument_group("questions")
    data.add_argument("--data", type=_path, help=".jsonl with question_id, image and text, or its folder")
    data.add_argument("--answers", type=_path, help="file or folder of reference answers, if --data has none")
    data.add_argument("--images", type=_path, help="folder of the images (default: the folder of the questions)")
    data.add_argument("--questions", type=int, help="number of questions, drawn with --seed (default: all; demo: 600)")
    data.add_argument("--seed", type=int, default=0, help="seed of the questions and the bootstrap (default: 0)")
    data.add_argument("--batch", type=int, default=25, help="questions answered together (default: 25)")
    data.add_argument("--max-new-tokens", type=int, help="longest answer (default: the task's)")
    data.add_argument("--timed", type=int, default=50, help="questions timed one at a time (default: 50)")
    output = parser.add_argument_group("output")
    output.add_argument("--out", type=_path, help="write the result as JSON")
    output.add_argument("--html", type=_path, help="write a report as one HTML page")
    output.add_argument("--overlays", type=int, help=f"sample images in the report (default: {OVERLAYS})")
    output.add_argument("--force", action="store_true", help="replace existing files")
    parser.set_defaults(command_line=shlex.join(["secateur", *argv]))


def _path(text: str) -> Path:
    if not text:  # Path("") would be the current folder
        raise argparse.ArgumentTypeError("the path is empty; name a file or folder")
    return Path(text)


def _check_output(arguments: argparse.Namespace) -> None:
    """Check that the outputs can be written, before the questions, which may take hours."""
    from secateur.bundle.atomic import check_file_free
    from secateur.errors import BadOutput, InputError

    for path in (arguments.out, arguments.html):
        if path is not None:
            check_file_free(path, arguments.force)
    if arguments.out is not None and arguments.html is not None:
        out, html = arguments.out.resolve(), arguments.html.resolve()
        if out == html or out in html.parents or html in out.parents:
            raise BadOutput(f"--out {arguments.out} and --html {arguments.html} overlap; choose two separate files")
    if arguments.overlays is not None and arguments.overlays < 0:
        raise InputError(f"--overlays is {arguments.overlays}; it must be at least 0")
    if arguments.overlays is not None and arguments.html is None:
        raise InputError(f"--overlays is {arguments.overlays}, but there is no report for them; add --html")
    if arguments.html is not None:
        importlib.import_module("secateur.evaluation.report")  # to fail now if a package is missing


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur import plugins
    from secateur.bundle.atomic import write_text
    from secateur.errors import InputError
    from secateur.evaluation import batching, tasks
    from secateur.evaluation.gate_pictures import why_no_pictures
    from secateur.evaluation.run import EvaluationSettings, evaluate, select_schedules
    from secateur.evaluation.tasks.base import Source, Task
    from secateur.runtime import Bundle, Pipeline

    _check_output(arguments)
    settings = EvaluationSettings(arguments.seed, arguments.timed, arguments.batch, arguments.max_new_tokens)
    source = Source(arguments.data, arguments.answers, arguments.images, arguments.questions, arguments.seed)
    task: Task = plugins.load(tasks, arguments.task, "task").Task(source)
    names = select_schedules(Bundle.load(arguments.bundle, verify=False).manifest.schedules, arguments.schedules)
    loaded = Pipeline.load(
        arguments.bundle, arguments.backend, arguments.threads, device=arguments.device, schedules=names
    )
    reason = why_no_pictures(loaded.bundle.manifest)
    if arguments.overlays and reason:
        loaded.close()
        raise InputError(f"--overlays is {arguments.overlays}, but {reason}; leave it out")
    with loaded as vlm, bars() as show:
        found = evaluate(
            vlm,
            task,
            names,
            settings,
            show,
            source=arguments.task if arguments.data is None else f"{arguments.task}: {arguments.data}",
            backend=arguments.backend,
            command=arguments.command_line,
        )
        if arguments.out is not None:  # before the report, which might fail
            write_text(arguments.out, found.to_json())
        if arguments.html is not None:
            from secateur.evaluation.report import report

            longest = settings.max_new_tokens or task.max_new_tokens
            count = OVERLAYS if arguments.overlays is None else arguments.overlays
            count = 0 if reason else count
            samples = batching.overlays(vlm, task, names, count, longest, show)
            write_text(arguments.html, report(found, samples))
    result = found.as_dict()
    if arguments.html is not None and reason:
        result["note"] = f"the report does not show kept tokens: {reason}"
    return result


def show(result: dict[str, Any], console: Console) -> None:
    console.print(result_tables.scores(result))
    if (compared := result_tables.against_full(result)) is not None:
        console.print(compared)
    console.print(result_tables.costs(result))
    console.print(result_tables.costs_note(result), style="dim italic", markup=False, highlight=False)
    if any(schedule["groups"] for schedule in result["schedules"]):
        console.print(result_tables.groups(result))
    if "note" in result:
        console.print(f"note: {result['note']}", markup=False, soft_wrap=True)
