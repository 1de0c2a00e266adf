# SPDX-License-Identifier: Apache-2.0
"""Parts of SVG charts: scales, round ticks, labels without overlap, and stacked bars of times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from secateur.report.formats import milliseconds

STAGES = ("preprocess", "vision", "projector", "embed", "segments", "gates")
WIDTH, TOP, ROW, BAR = 1040, 30, 22, 15


@dataclass(frozen=True)
class Scale:
    """Map from [start, end] to the pixels [first, last], linear or logarithmic."""

    start: float
    end: float
    first: float
    last: float
    log: bool = False

    def __call__(self, value: float) -> float:
        at, start, end = (math.log(v) if self.log else v for v in (value, self.start, self.end))
        return self.first + (at - start) / (end - start) * (self.last - self.first)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Return round figures in [low, high], in steps of 1, 2 or 5 times a power of ten."""
    if high <= low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * f for f in (1, 2, 5, 10) if power * f >= raw * 0.999)
    return [round(i * step, 10) for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def halvings(low: float, high: float) -> list[float]:
    """Return 1, 1.5, 2, 3, 4, 6, 8 ... in [low, high], or only powers of two if there are many."""
    every = [2.0**i * f for i in range(24) for f in (1, 1.5)]
    inside = [v for v in every if low <= v <= high]
    return inside if len(inside) <= 5 else [v for v in inside if math.log2(v).is_integer()]


def place_labels(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Return the positions nearest to `wanted` (least squares), in its order, at least `gap` apart, in [low, high].

    After subtracting i gaps from the i-th position, this is isotonic regression, solved by pooling adjacent violators.

    Raises:
        ValueError: the labels do not fit.
    """
    room = high - low - gap * (len(wanted) - 1)
    if room < 0:
        raise ValueError(f"{len(wanted)} labels {gap} apart do not fit within {low} and {high}")
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    blocks: list[tuple[float, int]] = []  # mean, members
    for rank, i in enumerate(order):
        mean, count = wanted[i] - rank * gap, 1
        while blocks and blocks[-1][0] >= mean:
            other, members = blocks.pop()
            mean, count = (mean * count + other * members) / (count + members), count + members
        blocks.append((mean, count))
    pooled = [mean for mean, count in blocks for _ in range(count)]
    places = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        places[i] = min(max(pooled[rank], low), low + room) + rank * gap
    return places


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
