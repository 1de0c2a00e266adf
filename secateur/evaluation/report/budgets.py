# SPDX-License-Identifier: Apache-2.0
"""Groups of schedules with about the same budget, which may be compared, and their times to the first token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median

from markupsafe import Markup

from secateur.evaluation.compare import SPREAD
from secateur.evaluation.results import CONTROLS, SUMS, Evaluation, ScheduleResult
from secateur.report import formats
from secateur.report.charts import STAGES, Bar, stacked

MORE = 1.05
"""A schedule with more than this many times the median tokens of its group is not compared with the others."""


@dataclass(frozen=True)
class BudgetGroup:
    """`schedules`, best score first, that keep about `tokens` vision tokens (their geometric mean)."""

    tokens: float
    schedules: tuple[ScheduleResult, ...]

    @property
    def rivals(self) -> tuple[ScheduleResult, ...]:
        """Return the schedules without clearly more tokens than the others, among which the best is marked."""
        limit = MORE * median(s.average_tokens for s in self.schedules)
        return tuple(s for s in self.schedules if s.average_tokens <= limit)


def budgets(evaluation: Evaluation) -> list[BudgetGroup]:
    """Group the pruned schedules by budget, the largest first.

    A schedule starts a new group when it keeps less than SPREAD of the tokens of the first one in the current group.
    Controls have budgets in steps (a downsampled image has a whole number of patches per side), so they join the
    nearest group, and start one only where there are no other methods.
    """
    pruned = evaluation.schedules[1:]
    openers = [s for s in pruned if s.method not in CONTROLS] or list(pruned)
    opened: list[list[ScheduleResult]] = []
    for schedule in sorted(openers, key=lambda s: -s.average_tokens):
        if not opened or schedule.average_tokens < SPREAD * opened[-1][0].average_tokens:
            opened.append([])
        opened[-1].append(schedule)
    centers = [math.exp(mean(math.log(_positive(s)) for s in members)) for members in opened]
    for schedule in pruned:
        if schedule not in openers:
            nearest = min(range(len(opened)), key=lambda i: abs(math.log(_positive(schedule) / centers[i])))
            opened[nearest].append(schedule)
    ranked = (sorted(members, key=lambda s: (-s.score, s.name)) for members in opened)
    return [BudgetGroup(center, tuple(members)) for center, members in zip(centers, ranked, strict=True)]


def best(schedules: Sequence[ScheduleResult]) -> frozenset[tuple[str, str]]:
    """Return (schedule, column) of the best values among `schedules`, rounded as in the table.

    Equal values are all marked; a column in which all are equal has none.
    """
    columns = {
        "score": {s.name: round(s.score, 3) for s in schedules},
        "retention": {s.name: round(s.retention, 3) for s in schedules if s.retention is not None},
        "hard": {s.name: round(s.split.hard.score, 3) for s in schedules if s.split and s.split.hard.score is not None},
        "ttft": {s.name: -round(s.ttft_ms.p50, 1) for s in schedules},
    }
    return frozenset(
        (name, column)
        for column, figures in columns.items()
        for name, figure in figures.items()
        if figure == max(figures.values()) > min(figures.values())
    )


def _positive(schedule: ScheduleResult) -> float:
    return max(schedule.average_tokens, 0.5)  # for the logarithm: a schedule may drop every token


def stages(schedule: ScheduleResult) -> dict[str, float]:
    """Return the milliseconds of each of STAGES, with all segments added up, and all gates (any other name).

    The graph of a downsample gate replaces the vision encoder, so its time counts as vision.
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


def bars(evaluation: Evaluation, groups: list[BudgetGroup]) -> Markup:
    """Draw the time to the first token as SVG, one stacked bar per schedule: `full`, then group by group."""
    parts = [("No pruning", evaluation.schedules[:1])]
    parts += [(f"About {formats.tokens(group.tokens)} tokens", group.schedules) for group in groups]
    return stacked(
        [(head, [Bar(s.name, stages(s), s.ttft_ms.p50, s.ttft_ms.p95) for s in members]) for head, members in parts]
    )
