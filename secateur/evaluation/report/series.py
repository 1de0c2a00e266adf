# SPDX-License-Identifier: Apache-2.0
"""Lines of a chart, one per method, with color and marker, dashed for controls."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import mean

from markupsafe import Markup

from secateur.evaluation.results import CONTROLS, Evaluation, ScheduleResult

COLOURS = 8
SAME = 0.98
"""Two token counts are equal where the smaller has at least this share of the larger."""
MARKERS = (  # within 5 units of the origin
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "M-3.6-3.6h7.2v7.2h-7.2z",
    "M0-5 4.7 3.4h-9.4z",
    "M0-5 5 0 0 5-5 0z",
    "M0 5 4.7-3.4h-9.4z",
    "M-1.5-4.6h3v3.1h3.1v3h-3.1v3.1h-3v-3.1h-3.1v-3h3.1z",
    "M-5 0-2.5-4.4h5L5 0 2.5 4.4h-5z",
    "M0-5 1.4-1.6 5-1.5 2.2.8 3.1 4.3 0 2.3-3.1 4.3-2.2.8-5-1.5-1.4-1.6z",
)


@dataclass(frozen=True)
class Series:
    """Schedules of one line, from many tokens to few; `look` holds CSS classes, `marker` an SVG path."""

    label: str
    look: str
    marker: str
    schedules: tuple[ScheduleResult, ...]

    @property
    def control(self) -> bool:
        return self.schedules[0].method in CONTROLS

    @property
    def points(self) -> list[tuple[float, float]]:
        """Return (average tokens, score) along the line, as means of schedules with equal tokens, such as seeds."""
        alike: list[list[ScheduleResult]] = []
        for schedule in self.schedules:
            if not alike or schedule.average_tokens < SAME * alike[-1][0].average_tokens:
                alike.append([])
            alike[-1].append(schedule)
        return [(mean(s.average_tokens for s in group), mean(s.score for s in group)) for group in alike]

    def mark(self, x: float, y: float, title: str = "") -> Markup:
        """Draw the marker at (x, y); browsers show `title` as a tooltip."""
        inner = Markup("<title>{}</title>").format(title) if title else ""
        shape = '<path class="mark {}" d="{}" transform="translate({:.1f} {:.1f})">{}</path>'
        return Markup(shape).format(self.look, self.marker, x, y, inner)

    @property
    def swatch(self) -> Markup:
        """Draw marker and line as a small legend symbol."""
        line = Markup('<path class="line {}" d="M1 7h24"/>').format(self.look)
        return Markup('<svg class="swatch" viewBox="0 0 26 14" aria-hidden="true">{}{}</svg>').format(
            line, self.mark(13, 7)
        )


def label(schedule: ScheduleResult) -> str:
    """Return the name of the method, with its positions unless these are the original ones."""
    return schedule.method if schedule.positions == "original" else f"{schedule.method} ({schedule.positions})"


def by_line(evaluation: Evaluation) -> dict[tuple[str, str], list[ScheduleResult]]:
    """Group the pruned schedules by method and line name.

    Where a method has several schedules of one size, their options make separate lines, named by the schedules:
    fopru-22 and fopru-row-22 belong to the lines "fopru" and "fopru-row". Controls of one size differ in the seed only.
    """
    methods: dict[str, list[ScheduleResult]] = {}
    for schedule in sorted(evaluation.schedules[1:], key=lambda s: s.method in CONTROLS):
        methods.setdefault(label(schedule), []).append(schedule)
    lines: dict[tuple[str, str], list[ScheduleResult]] = {}
    for name, schedules in methods.items():
        sizes = sorted(s.average_tokens for s in schedules)
        alike = any(low > SAME * high for low, high in zip(sizes, sizes[1:], strict=False))
        for schedule in schedules:
            options = alike and schedule.method not in CONTROLS
            line = re.sub(r"-\d+(?=-|$)", "", schedule.name) if options else name
            lines.setdefault((name, line), []).append(schedule)
    return lines


def all_series(evaluation: Evaluation) -> list[Series]:
    """Return every line except that of `full`, in the order of the document, controls last.

    Colors and markers repeat with different periods, so the first 64 methods differ even without color.
    """
    made, methods, controls = [], 0, 0
    for (_, line), schedules in by_line(evaluation).items():
        if schedules[0].method in CONTROLS:
            turn, look = controls, f"control dash{controls % 3}"
            controls += 1
        else:
            turn, look = methods, f"c{methods % COLOURS}" + (" hollow" if methods // COLOURS % 2 else "")
            methods += 1
        marker = MARKERS[(turn + turn // len(MARKERS) * 3) % len(MARKERS)]
        made.append(Series(line, look, marker, tuple(sorted(schedules, key=lambda s: -s.average_tokens))))
    return made
