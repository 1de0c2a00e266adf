# SPDX-License-Identifier: Apache-2.0
"""Where the time to the first token goes: one stacked bar per schedule."""

from __future__ import annotations

from markupsafe import Markup

from secateur.evaluation.report import formats
from secateur.evaluation.report.budgets import BudgetGroup
from secateur.evaluation.results import SUMS, Evaluation, ScheduleResult
from secateur.report.stacked import STAGES, Bar, stacked


def stages(schedule: ScheduleResult) -> dict[str, float]:
    """Milliseconds of each of STAGES: segments in one sum, and gates (whatever else has a name) in one.

    The graph of a downsample gate is the vision encoder on a smaller image and runs in its place: its time is vision.
    """
    found = dict.fromkeys(STAGES, 0.0)
    smaller = {f"{schedule.name}.{i}" for i, gate in enumerate(schedule.gates) if gate.kind == "downsample"}
    for name, spent in schedule.stage_ms.items():
        if name in STAGES:
            found[name] += spent
        elif name in smaller:
            found["vision"] += spent
        elif name not in SUMS:
            found["segments" if name.startswith("segment_") else "gates"] += spent
    return found


def bars(evaluation: Evaluation, budgets: list[BudgetGroup]) -> Markup:
    """An SVG picture, `full` first and then budget by budget."""
    groups = [("No pruning", evaluation.schedules[:1])]
    groups += [(f"About {formats.tokens(b.tokens)} tokens", tuple(b.schedules)) for b in budgets]
    return stacked([(head, [_bar(schedule) for schedule in members]) for head, members in groups])


def _bar(schedule: ScheduleResult) -> Bar:
    return Bar(schedule.name, stages(schedule), schedule.ttft_ms.p50, schedule.ttft_ms.p95)
