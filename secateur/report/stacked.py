# SPDX-License-Identifier: Apache-2.0
"""SVG chart of times: one stacked bar of stages per schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.report.axes import Scale, ticks
from secateur.report.formats import milliseconds

STAGES = ("preprocess", "vision", "projector", "embed", "segments", "gates")
WIDTH, TOP, ROW, BAR = 1040, 30, 22, 15


@dataclass(frozen=True)
class Bar:
    """Milliseconds of a schedule per stage and in total. The whisker ends at `late`; None for no whisker."""

    name: str
    stages: Mapping[str, float]
    p50: float
    late: float | None

    @property
    def end(self) -> float:
        return max(sum(self.stages.values()), self.late or self.p50)


def stacked(groups: Sequence[tuple[str, Sequence[Bar]]]) -> Markup:
    """Return an SVG picture of groups of bars, each below its heading ("" for none)."""
    shown = [bar for _, bars in groups for bar in bars]
    left = 14 + 7.4 * max(len(bar.name) for bar in shown)
    scale = Scale(0, max(bar.end for bar in shown) or 1, left, WIDTH - 132)
    parts, y = [], TOP
    for head, bars in groups:
        if head:
            parts.append(Markup('<text class="strong" x="0" y="{}">{}</text>').format(y + 15, head))
            y += ROW
        for bar in bars:
            parts.append(_drawn(bar, scale, y))
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
        "; ".join(f"{bar.name} {milliseconds(bar.p50)} ms" for bar in shown),
        TOP - 8,
        Markup("").join(grid),
        Markup("").join(parts),
    )


def _drawn(bar: Bar, scale: Scale, y: float) -> Markup:
    parts = [Markup('<text class="end" x="{:.1f}" y="{}">{}</text>').format(scale.first - 8, y + 12, bar.name)]
    start = 0.0
    for name, spent in bar.stages.items():
        x, width = scale(start), scale(start + spent) - scale(start)
        if width >= 0.3:
            box = '<rect class="stage {}" x="{:.1f}" y="{}" width="{:.1f}" height="{}"><title>{}</title></rect>'
            title = f"{bar.name}, {name}: {milliseconds(spent)} ms"
            parts.append(Markup(box).format(name, x, y, width, BAR, title))
        if width >= 30:
            text = '<text class="mid inside" x="{:.1f}" y="{}">{}</text>'
            parts.append(Markup(text).format(x + width / 2, y + 11.5, milliseconds(spent)))
        start += spent
    if bar.late is not None:
        whisker = '<path class="late" d="M{0:.1f} {1}H{2:.1f}m0-4v8M{0:.1f} {3}v{4}"/>'
        parts.append(Markup(whisker).format(scale(bar.p50), y + BAR / 2, scale(bar.late), y - 1, BAR + 2))
    end, figure = scale(bar.end) + 8, milliseconds(bar.p50)
    parts.append(Markup('<text x="{:.1f}" y="{}">{} ms</text>').format(end, y + 12, figure))
    return Markup("").join(parts)
