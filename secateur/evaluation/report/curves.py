# SPDX-License-Identifier: Apache-2.0
"""Charts of score against tokens: one of all methods, labeled at the line ends, and small ones with intervals."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from secateur.evaluation.report.series import Series
from secateur.evaluation.results import Evaluation, ScheduleResult
from secateur.report import formats
from secateur.report.charts import Scale, halvings, place_labels, ticks

WIDTH, LEFT, TOP, BOTTOM, GAP = 1040, 48, 30, 56, 17
SMALL_WIDTH, SMALL_HEIGHT = 280, 190
FEW = 3
"""Most methods whose intervals are drawn in one chart; with more they would overlap."""


@dataclass(frozen=True)
class Curves:
    """`every` shows all methods; `each` shows one method per chart over the others in gray, if there are many."""

    every: Markup
    each: tuple[Markup, ...]


def curves(evaluation: Evaluation, series: list[Series]) -> Curves:
    """Draw the charts as SVG; empty without a pruned schedule."""
    if not series:
        return Curves(Markup(""), ())
    if len(series) <= FEW:
        return Curves(_every(evaluation, series), ())
    small = Frame(
        Scale(*_domain(series), 38, SMALL_WIDTH - 16, log=True),
        Scale(*_scores(evaluation), SMALL_HEIGHT - 40, 28),
    )
    backdrop = Markup("").join(_line(s, small, "faint") for s in series)
    each = (_one(evaluation, s, small, backdrop if i == 0 else None) for i, s in enumerate(series))
    return Curves(_every(evaluation, series), tuple(each))


@dataclass(frozen=True)
class Frame:
    x: Scale
    y: Scale

    def place(self, tokens: float, score: float) -> tuple[float, float]:
        """Return the coordinates of a point; less than one token is drawn at one."""
        return self.x(max(tokens, 1.0)), self.y(score)

    def mark(self, series: Series, evaluation: Evaluation) -> Markup:
        """Draw the markers of one method, with their values as tooltips."""
        shown = ((self.place(s.average_tokens, s.score), _title(s, evaluation)) for s in series.schedules)
        return Markup("").join(series.mark(*place, title) for place, title in shown)

    def grid(self, evaluation: Evaluation, about: int) -> Markup:
        """Draw grid lines with labels: the score on the left, tokens and their share below."""
        left, right, floor = self.x.first, self.x.last, self.y.first
        parts = []
        for value in ticks(self.y.start, self.y.end, about):
            text = f"{100 * value if evaluation.full_marks == 1 else value:g}"
            row = '<path class="grid" d="M{:.0f} {:.1f}H{:.0f}"/><text class="end" x="{:.0f}" y="{:.1f}">{}</text>'
            parts.append(Markup(row).format(left, self.y(value), right, left - 8, self.y(value) + 4, text))
        for value in halvings(self.x.end, self.x.start):
            column = (
                '<path class="grid" d="M{0:.1f} {1:.0f}v5"/><text class="mid" x="{0:.1f}" y="{2:.0f}">{3:g}</text>'
                '<text class="mid dim" x="{0:.1f}" y="{4:.0f}">{5:.0f} %</text>'
            )
            share = 100 * value / evaluation.vision_tokens
            parts.append(Markup(column).format(self.x(value), floor, floor + 18, value, floor + 33, share))
        return Markup("").join(parts)


def _domain(series: list[Series]) -> tuple[float, float]:
    """Return the tokens at the left and right edge, with a margin beside the outermost points."""
    alive = [max(s.average_tokens, 1.0) for line in series for s in line.schedules]
    ratio = max(alive) / min(alive)
    margin = max(ratio**0.08, 1.5 if ratio < 1.3 else 1.0)
    return max(alive) * margin, min(alive) / margin


def _scores(evaluation: Evaluation) -> tuple[float, float]:
    """Return the scores at the lower and upper edge; all intervals fit, so small differences look small."""
    shown = [end for s in evaluation.schedules for end in (s.score, *s.score_interval)]
    margin = 0.05 * (max(shown) - min(shown)) or 0.05 * evaluation.full_marks
    return max(min(shown) - margin, 0.0), max(shown) + margin


def _line(series: Series, frame: Frame, look: str) -> Markup:
    points = " ".join("{:.1f},{:.1f}".format(*frame.place(*point)) for point in series.points)
    return Markup('<polyline class="{}" points="{}"/>').format(look, points)


def _whisker(schedule: ScheduleResult, series: Series, frame: Frame) -> Markup:
    x, (low, high) = frame.place(schedule.average_tokens, 0)[0], schedule.score_interval
    path = '<path class="whisker {0}" d="M{1:.1f} {2:.1f}V{3:.1f}m-4 0h8M{4:.1f} {2:.1f}h8"/>'
    return Markup(path).format(series.look, x, frame.y(low), frame.y(high), x - 4)


def _title(schedule: ScheduleResult, evaluation: Evaluation) -> str:
    marks = evaluation.full_marks
    score = f"{formats.score(schedule.score, marks)} ({formats.interval(schedule.score_interval, marks)})"
    return f"{schedule.name}: {evaluation.metric} {score} at {formats.tokens(schedule.average_tokens)} tokens"


def _every(evaluation: Evaluation, series: list[Series]) -> Markup:
    full = evaluation.schedules[0]
    height = max(420, TOP + BOTTOM + GAP * (len(series) + 2))
    right = WIDTH - 46 - 7.4 * max(len(s.label) for s in series)
    frame = Frame(
        Scale(*_domain(series), LEFT, right, log=True),
        Scale(*_scores(evaluation), height - BOTTOM, TOP),
    )
    lines = Markup("").join(_line(s, frame, f"line {s.look}") for s in series)
    if len(series) <= FEW:
        lines += Markup("").join(_whisker(p, s, frame) for s in series for p in s.schedules)
    marks = Markup("").join(frame.mark(s, evaluation) for s in series)
    ends = [frame.place(*s.points[-1]) for s in series]
    names = []
    for one, end, y in zip(series, ends, place_labels([y for _, y in ends], GAP, TOP, height - BOTTOM), strict=True):
        leader = '<path class="leader" d="M{:.1f} {:.1f}L{:.1f} {:.1f}h6"/>'
        names.append(Markup(leader).format(end[0] + 7, end[1], right + 12, y))
        names.append(one.mark(right + 26, y))
        names.append(Markup('<text x="{:.1f}" y="{:.1f}">{}</text>').format(right + 36, y + 4, one.label))
    level = frame.y(full.score)
    return Markup(
        '<svg class="chart" viewBox="0 0 {width} {height}" role="img"><title>{metric} against vision tokens</title>'
        "<desc>{desc}</desc>{grid}"
        '<text class="dim" x="6" y="14">{metric}, {unit}</text>'
        '<text class="dim mid" x="{middle:.0f}" y="{below}">average vision tokens per decoder layer, and the share of '
        "{tokens} (fewer to the right)</text>"
        '<path class="full" d="M{left} {level:.1f}H{right:.1f}"/>'
        '<text class="strong" x="{inset}" y="{above:.1f}">full {score}</text>{lines}{marks}{names}</svg>'
    ).format(
        width=WIDTH,
        height=height,
        metric=evaluation.metric,
        desc=f"{len(series)} methods, {len(evaluation.schedules) - 1} schedules; the figures are in the table below.",
        grid=frame.grid(evaluation, 6),
        unit=formats.unit(evaluation.full_marks),
        middle=(LEFT + right) / 2,
        below=height - 6,
        tokens=evaluation.vision_tokens,
        left=LEFT,
        level=level,
        right=right,
        inset=LEFT + 8,
        above=level - 6,
        score=formats.score(full.score, evaluation.full_marks),
        lines=lines,
        marks=marks,
        names=Markup("").join(names),
    )


def _one(evaluation: Evaluation, one: Series, frame: Frame, backdrop: Markup | None) -> Markup:
    """Draw one method with its intervals; the first chart defines the gray lines that the others reuse."""
    gray = '<g id="all-curves">{}</g>' if backdrop is not None else '<use href="#all-curves"/>'
    return Markup(
        '<svg class="chart small" viewBox="0 0 {width} {height}" role="img"><title>{name}</title><desc>{desc}</desc>'
        '{mark}<text class="strong" x="22" y="16">{name}</text>{grid}{gray}'
        '<path class="full" d="M38 {level:.1f}H{right:.0f}"/>{line}{whiskers}{marks}</svg>'
    ).format(
        width=SMALL_WIDTH,
        height=SMALL_HEIGHT,
        name=one.label,
        desc="; ".join(_title(s, evaluation) for s in one.schedules),
        mark=one.mark(10, 12),
        grid=frame.grid(evaluation, 4),
        gray=Markup(gray).format(backdrop),
        level=frame.y(evaluation.schedules[0].score),
        right=SMALL_WIDTH - 16,
        line=_line(one, frame, f"line {one.look}"),
        whiskers=Markup("").join(_whisker(s, one, frame) for s in one.schedules),
        marks=frame.mark(one, evaluation),
    )
