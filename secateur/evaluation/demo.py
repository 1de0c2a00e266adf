# SPDX-License-Identifier: Apache-2.0
"""Accuracy of every schedule of a demo bundle on held-out questions.

python -m secateur.evaluation.demo build/demo-btp --questions 600
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from secateur.cli import one_line
from secateur.commands import _report
from secateur.demo.scenes import samples
from secateur.errors import InputError
from secateur.evaluation.retention import retention
from secateur.runtime import Pipeline

BATCH = 25


def evaluate(vlm: Pipeline, questions: int, seed: int, batch: int = BATCH) -> dict[str, Any]:
    """Right answers per schedule and kind of question, on the same questions of the test split (exact match)."""
    chosen = list(samples("test", questions, seed))
    right: dict[str, list[bool]] = defaultdict(list)
    steps = [(name, i) for name in vlm.schedules for i in range(0, len(chosen), batch)]
    for name, i in track(steps, "evaluate", console=Console(stderr=True), transient=True):
        part = chosen[i : i + batch]
        answers = vlm.ask([s.image for s in part], [s.question for s in part], schedule=name, max_new_tokens=4)
        right[name] += [a.text.strip() == s.answer for a, s in zip(answers, part, strict=True)]
    budgets = {name: vlm.bundle.schedule(name).budget for name in vlm.schedules}
    kinds = sorted({s.kind for s in chosen})
    return {
        name: dataclasses.asdict(retention(right[name], right["full"], seed))
        | {"compression": budgets[name].compression, "average_tokens": budgets[name].average_tokens}
        | {"kinds": {k: _share([r for r, s in zip(right[name], chosen, strict=True) if s.kind == k]) for k in kinds}}
        for name in vlm.schedules
    }


def _share(right: list[bool]) -> float:
    return sum(right) / len(right)


def table(found: dict[str, Any]) -> Any:
    kinds = list(next(iter(found.values()))["kinds"])
    made = _report.table("Held-out accuracy, %", "schedule", "compression", "accuracy", "retention", "95 %", *kinds)
    for name, row in found.items():
        low, high = row["retention_interval"]
        made.add_row(
            name,
            f"{row['compression']:.1%}",
            f"{100 * row['accuracy']:.1f}",
            f"{100 * row['retention']:.1f}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            *(f"{100 * row['kinds'][kind]:.0f}" for kind in kinds),
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--questions", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="ort")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.questions < 1 or not 0 <= arguments.seed < 2**32:
        raise InputError("--questions must be at least 1, and --seed within 0 and 4294967295")
    with Pipeline.load(arguments.bundle, arguments.backend) as vlm:
        found = evaluate(vlm, arguments.questions, arguments.seed)
    if arguments.json:
        print(json.dumps(found, indent=2))
    else:
        Console(width=160).print(table(found))


if __name__ == "__main__":
    sys.exit(one_line(main))
