# SPDX-License-Identifier: Apache-2.0
"""Calibrate a model on a few samples and write a pruning schedule.

secateur calibrate --method btp --compression 0.78 --out schedule.json
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.terminal import calibration_options, tables
from secateur.terminal.progress_bars import bars

HELP = "calibrate a model and write a schedule"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    calibration_options.add_arguments(parser, argv)
    parser.add_argument("--out", type=Path, help="schedule file (default: NAME.json); a folder for several schedules")
    parser.add_argument("--force", action="store_true", help="replace existing schedule files")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.bundle.schedule import Schedule
    from secateur.bundle.schedule_file import check_schedule_free, write_schedule
    from secateur.errors import BadOutput
    from secateur.load_model import load

    sizes = len(arguments.image_size or (None,))
    calibration = calibration_options.calibration(arguments)
    several = calibration.count * sizes > 1
    if several and arguments.out and arguments.out.is_file():
        raise BadOutput(f"output {arguments.out} is a file, but several schedules need a folder; change --out")
    if not several and (known := arguments.out or (arguments.name and Path(f"{arguments.name}.json"))):
        check_schedule_free(known, arguments.force)
    family = load(arguments.model, revision=arguments.revision)
    with bars() as show:
        made = [calibration.run(seen, show) for seen in calibration_options.families(arguments, family)]
    files: dict[Path, Schedule] = {}
    schedules = [schedule for each in made for schedule in each]
    for schedule in schedules:
        size = f"@{schedule.model.image_size}" if sizes > 1 else ""
        name = Path(f"{schedule.name}{size}.json")
        path = name if arguments.out is None else arguments.out / name if several else arguments.out
        check_schedule_free(path, arguments.force, bool(schedule.tensors))
        files[path] = schedule
    for path, schedule in files.items():
        write_schedule(schedule, path)
    shown = zip(calibration_options.summaries(made).items(), files.items(), strict=True)
    return {
        "schedules": {
            name: summary | {"file": str(path), "calibration": schedule.calibration}
            for (name, summary), (path, schedule) in shown
        }
    }


def show(result: dict[str, Any], console: Console) -> None:
    for name, schedule in result["schedules"].items():
        console.print(tables.schedules({name: schedule}))
        console.print(tables.calibration(schedule["calibration"]))
        console.print(f"wrote {schedule['file']}")
