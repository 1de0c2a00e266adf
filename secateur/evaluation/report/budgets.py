# SPDX-License-Identifier: Apache-2.0
"""Schedules of about the same budget, side by side: only these may be compared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from secateur.evaluation.compare import SPREAD
from secateur.evaluation.controls import CONTROLS
from secateur.evaluation.results import Evaluation, ScheduleResult

MORE = 1.05
"""A schedule with more than so many times the median tokens of its budget is no rival to the others."""


@dataclass(frozen=True)
class BudgetGroup:
    """`schedules`, best score first, that keep about `tokens` vision tokens (their geometric mean)."""

    tokens: float
    schedules: tuple[ScheduleResult, ...]

    @property
    def rivals(self) -> tuple[ScheduleResult, ...]:
        """Those that do not have clearly more tokens than the others, and so may be called the best."""
        limit = MORE * median(s.average_tokens for s in self.schedules)
        return tuple(s for s in self.schedules if s.average_tokens <= limit)


def budgets(evaluation: Evaluation) -> list[BudgetGroup]:
    """The pruned schedules by budget, the largest first.

    A schedule opens a new budget when it keeps less than SPREAD of the tokens of the last one's first.
    Controls come in steps of their own (a downsampled image has a whole number of patches a side), so they join the
    nearest budget and open one only where there is nothing else.
    """
    pruned = evaluation.schedules[1:]
    openers = [s for s in pruned if s.method not in CONTROLS] or list(pruned)
    opened: list[list[ScheduleResult]] = []
    for schedule in sorted(openers, key=lambda s: -s.average_tokens):
        if not opened or schedule.average_tokens < SPREAD * opened[-1][0].average_tokens:
            opened.append([])
        opened[-1].append(schedule)
    centres = [_centre(members) for members in opened]
    for schedule in pruned:
        if schedule not in openers:
            nearest = min(range(len(opened)), key=lambda i: abs(math.log(_positive(schedule) / centres[i])))
            opened[nearest].append(schedule)
    ranked = (sorted(members, key=lambda s: (-s.score, s.name)) for members in opened)
    return [BudgetGroup(centre, tuple(members)) for centre, members in zip(centres, ranked, strict=True)]


def best(schedules: Sequence[ScheduleResult]) -> frozenset[tuple[str, str]]:
    """(schedule, column) of the best figures among `schedules`, to the digits that the table shows.

    Equal figures share the honour; a column in which all are equal has no best.
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
    return max(schedule.average_tokens, 0.5)  # of logarithms: a schedule may drop every token


def _centre(members: list[ScheduleResult]) -> float:
    return math.exp(sum(math.log(_positive(s)) for s in members) / len(members))
