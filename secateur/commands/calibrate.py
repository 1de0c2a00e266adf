# SPDX-License-Identifier: Apache-2.0
"""Measure a model on a few samples and write a pruning schedule.

secateur calibrate --method btp --compression 0.78 --out schedule.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.commands import _options, _report
from secateur.commands._progress import bars

HELP = "measure a model, write a schedule"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    _options.add_arguments(parser, argv)
    parser.add_argument("--out", type=Path, help="schedule file (default: NAME.json); a folder for several schedules")
    parser.add_argument("--force", action="store_true", help="replace existing schedule files")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.calibration.files import check_schedule_free, write_schedule
    from secateur.errors import BadOutput
    from secateur.models.base import load

    several = _options.number(arguments) > 1
    if several and arguments.out and arguments.out.is_file():
        raise BadOutput(f"output {arguments.out} is a file, but several schedules need a folder; change --out")
    if arguments.out and not several:
        check_schedule_free(arguments.out, arguments.force)
    family = load(arguments.model)
    with bars() as show:
        schedules = _options.make_schedules(arguments, family, show)
    files = {}
    for schedule in schedules:
        name = Path(f"{schedule.name}.json")
        path = name if arguments.out is None else arguments.out / name if several else arguments.out
        check_schedule_free(path, arguments.force, bool(schedule.tensors))
        files[schedule.name] = path
    for schedule in schedules:
        write_schedule(schedule, files[schedule.name])
    return {
        "schedules": {
            s.name: _options.summary(s) | {"file": str(files[s.name]), "calibration": s.calibration} for s in schedules
        }
    }


def show(result: dict[str, Any], console: Console) -> None:
    for name, schedule in result["schedules"].items():
        console.print(_report.schedules({name: schedule}))
        console.print(_report.calibration(schedule["calibration"]))
        console.print(f"wrote {schedule['file']}")
