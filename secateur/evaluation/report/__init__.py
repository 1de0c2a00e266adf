# SPDX-License-Identifier: Apache-2.0
"""HTML report of an evaluation, see secateur/report/page.py."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.evaluation import results as words
from secateur.evaluation.gate_pictures import shown_gates
from secateur.evaluation.report.budgets import bars, best, budgets
from secateur.evaluation.report.curves import curves
from secateur.evaluation.report.kept import images, notes, pictures, samples
from secateur.evaluation.report.series import all_series
from secateur.evaluation.results import CONTROLS, Evaluation, Overlay
from secateur.report import formats
from secateur.report.charts import STAGES
from secateur.report.page import Filter, render

__all__ = ["report"]
Details = list[tuple[str, list[str], dict[str, dict[str, str]]]]


def report(evaluation: Evaluation, overlays: Sequence[Overlay]) -> str:
    """Return the page as HTML text. Jinja2 and MarkupSafe escape every string of the data.

    overlays   sample images, shown with the tokens that each gate keeps; may be empty
    """
    series, groups = all_series(evaluation), budgets(evaluation)
    filters: dict[str, Filter] = {
        "headed": formats.headed,
        "interval": formats.interval,
        "mb": formats.megabytes,
        "ms": formats.milliseconds,
        "probability": formats.probability,
        "score": formats.score,
        "tokens": formats.tokens,
    }
    return render(
        Path(__file__).parent,
        filters,
        e=evaluation,
        full=evaluation.schedules[0],
        unit=formats.unit(evaluation.full_marks),
        methods=len({s.method for s in evaluation.schedules[1:]}),
        series=series,
        budgets=[(budget, best(budget.rivals)) for budget in groups],
        controls=CONTROLS,
        words=words,
        sizes=words.sizes_note(evaluation.image_sizes),
        shared=words.bundle_note(evaluation.segments, evaluation.encoder_scores),
        references=words.references(
            (s.split.reference for s in evaluation.schedules if s.split),
            {s.name: s.average_tokens for s in evaluation.schedules},
        ),
        details=_details(evaluation),
        curves=curves(evaluation, series),
        store=images(overlays, evaluation.grid),
        samples=samples(evaluation, overlays),
        kept=[(one, pictures(evaluation, overlays, one)) for one in series] if overlays else [],
        notes=notes,
        shown_gates=shown_gates,
        stages=STAGES,
        bars=bars(evaluation, groups),
    )


def _details(evaluation: Evaluation) -> Details:
    """Return title, columns, and text by schedule and column, of the tables after the main one, without empty ones."""
    marks = evaluation.full_marks
    kinds = {s.name: {k: formats.score(v, marks) for k, v in s.groups.items()} for s in evaluation.schedules}
    others = {s.name: {k: f"{v:,.4g}" for k, v in s.metrics.items()} for s in evaluation.schedules}
    tables = ((f"{formats.headed(evaluation.metric)} by kind of question", kinds), ("Other metrics", others))
    columns = [list(dict.fromkeys(key for row in rows.values() for key in row)) for _, rows in tables]
    return [(title, keys, rows) for (title, rows), keys in zip(tables, columns, strict=True) if keys]
