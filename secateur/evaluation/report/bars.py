# SPDX-License-Identifier: Apache-2.0
"""Where the time to the first token goes: one stacked bar per schedule."""

from __future__ import annotations

from markupsafe import Markup

from secateur.evaluation.report import formats
from secateur.evaluation.report.axes import Scale, ticks
from secateur.evaluation.report.budgets import Budget
from secateur.evaluation.results import SUMS, Evaluation, ScheduleResult

STAGES = ("preprocess", "vision", "projector", "embed", "segments", "gates")
WIDTH, TOP, ROW, BAR = 1040, 30, 22, 15


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


def bars(evaluation: Evaluation, budgets: list[Budget]) -> Markup:
    """An SVG picture, `full` first and then budget by budget."""
    shown = evaluation.schedules
    left = 14 + 7.4 * max(len(s.name) for s in shown)
    longest = max(max(sum(stages(s).values()), s.ttft_ms.p95) for s in shown)
    scale = Scale(0, longest or 1, left, WIDTH - 132)
    parts, y = [], TOP
    groups = [(f"About {formats.tokens(b.tokens)} tokens", b.schedules) for b in budgets]
    for head, members in [("No pruning", shown[:1]), *groups]:
        parts.append(Markup('<text class="strong" x="0" y="{}">{}</text>').format(y + 15, head))
        y += ROW
        for schedule in members:
            parts.append(_bar(schedule, scale, y))
            y += ROW
        y += 8
    rules = '<path class="grid" d="M{0:.1f} {1}V{2}"/><text class="mid" x="{0:.1f}" y="{3}">{4:g}</text>'
    grid = [Markup(rules).format(scale(v), TOP, y, TOP - 8, v) for v in ticks(0, scale.end)]
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img"><title>Milliseconds per stage</title><desc>{}</desc>'
        '<text class="dim" x="0" y="{}">ms</text>{}{}</svg>'
    ).format(
        WIDTH,
        y + 4,
        "; ".join(f"{s.name} {formats.milliseconds(s.ttft_ms.p50)} ms" for s in shown),
        TOP - 8,
        Markup("").join(grid),
        Markup("").join(parts),
    )


def _bar(schedule: ScheduleResult, scale: Scale, y: float) -> Markup:
    parts = [Markup('<text class="end" x="{:.1f}" y="{}">{}</text>').format(scale.first - 8, y + 12, schedule.name)]
    start = 0.0
    for name, spent in stages(schedule).items():
        x, width = scale(start), scale(start + spent) - scale(start)
        if width >= 0.3:
            box = '<rect class="stage {}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>'
            title = f"{schedule.name}, {name}: {formats.milliseconds(spent)} ms"
            parts.append(Markup(box).format(name, x, y, width, BAR, title))
        if width >= 30:
            text = '<text class="mid inside" x="{:.1f}" y="{}">{}</text>'
            parts.append(Markup(text).format(x + width / 2, y + 11.5, formats.milliseconds(spent)))
        start += spent
    p50, p95 = scale(schedule.ttft_ms.p50), scale(schedule.ttft_ms.p95)
    whisker = '<path class="late" d="M{0:.1f} {1}H{2:.1f}m0-4v8M{0:.1f} {3}v{4}"/>'
    parts.append(Markup(whisker).format(p50, y + BAR / 2, p95, y - 1, BAR + 2))
    end, figure = max(p95, scale(start)) + 8, formats.milliseconds(schedule.ttft_ms.p50)
    parts.append(Markup('<text x="{:.1f}" y="{}">{} ms</text>').format(end, y + 12, figure))
    return Markup("").join(parts)
