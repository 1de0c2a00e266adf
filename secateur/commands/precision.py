# SPDX-License-Identifier: Apache-2.0
"""Compare the accuracy of one model in several precisions, by the same questions to every schedule of each bundle.

secateur precision build/demo-fp32 build/demo-fp16 build/demo-int4 --questions 600

The other bundles are compared with the first one. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.terminal.progress_bars import bars

TEXTS = ("markdown",)
"""Fields of the result that are shown whole."""
HELP = "accuracy and size of one model in several precisions"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--task", default="demo", help="demo, or a task that reads --data (default: demo)")
    parser.add_argument("--data", type=Path, help="questions of the task, as for `secateur eval`")
    parser.add_argument("--images", type=Path, help="folder of the images")
    parser.add_argument("--questions", type=int, help="number of questions (default: all; demo: 600)")
    parser.add_argument("--batch", type=int, default=25, help="questions answered together (default: 25)")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur import plugins
    from secateur.evaluation import tasks
    from secateur.evaluation.precision_table import markdown, table
    from secateur.evaluation.tasks.base import Source, Task
    from secateur.runtime import Bundle

    source = Source(arguments.data, None, arguments.images, arguments.questions, 0)
    task: Task = plugins.load(tasks, arguments.task, "task").Task(source)
    bundles = [Bundle.load(path) for path in arguments.bundles]
    with bars() as show_progress:
        lines = table(bundles, task, arguments.batch, show_progress)
    return {"lines": [dataclasses.asdict(line) for line in lines], "markdown": markdown(lines)}


def show(result: dict[str, Any], console: Console) -> None:
    console.print(result["markdown"], markup=False, soft_wrap=True)
