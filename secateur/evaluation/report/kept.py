# SPDX-License-Identifier: Apache-2.0
"""SVG pictures of kept tokens: the image once per sample, and a veil over the dropped patches of each gate."""

from __future__ import annotations

import base64
import io
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import groupby

from markupsafe import Markup
from PIL import Image

from secateur.evaluation.gate_pictures import SHOWN, place, shown_gates
from secateur.evaluation.report.series import Series
from secateur.evaluation.results import Answered, Evaluation, Overlay, ScheduleResult

LARGEST = 224
PANEL, GAP, CAPTION = 120, 10, 20
NOTES = {
    "vision": "Chosen at the end of the vision encoder, before any decoder layer.",
    "downsample": "The encoder sees a smaller image; the patches shown are the positions of its tokens.",
    "route": "Every gate chooses again among all tokens; the others skip the layers up to the next gate.",
}


@dataclass(frozen=True)
class Picture:
    """Panels and answer of one schedule for one sample."""

    overlay: Overlay
    answered: Answered
    panels: Markup


@dataclass(frozen=True)
class SamplePictures:
    """Image of a sample, the answer of `full` (None if not asked), and how many of the other `asked` are right."""

    overlay: Overlay
    image: Markup
    full: Answered | None
    right: int
    asked: int


def images(overlays: Sequence[Overlay], grid: tuple[int, int]) -> Markup:
    """Return a hidden SVG that holds each image under the id "image-<i>", in units of patches, for `<use>`."""
    rows, columns = grid
    shape = '<image id="image-{}" width="{}" height="{}" preserveAspectRatio="none" href="{}"/>'
    held = (Markup(shape).format(i, columns, rows, _data_uri(o.image)) for i, o in enumerate(overlays))
    return Markup('<svg class="store" aria-hidden="true"><defs>{}</defs></svg>').format(Markup("").join(held))


def samples(evaluation: Evaluation, overlays: Sequence[Overlay]) -> list[SamplePictures]:
    """Return each sample with the number of right answers."""
    made = []
    full = evaluation.schedules[0].name
    rows, columns = evaluation.grid
    for i, overlay in enumerate(overlays):
        pruned = [a.score == 1 for name, a in overlay.answers.items() if name != full]
        view = (
            '<svg class="sample" viewBox="0 0 {} {}" role="img"><title>Sample {}</title><use href="#image-{}"/></svg>'
        )
        image = Markup(view).format(columns, rows, i + 1, i)
        made.append(SamplePictures(overlay, image, overlay.answers.get(full), sum(pruned), len(pruned)))
    return made


def pictures(
    evaluation: Evaluation, overlays: Sequence[Overlay], series: Series
) -> list[tuple[ScheduleResult, list[Picture]]]:
    """Return, for each schedule of one method, its picture of each sample that it was asked about."""
    return [
        (
            schedule,
            [
                _picture(i, overlay, schedule, overlay.answers[schedule.name], evaluation.grid)
                for i, overlay in enumerate(overlays)
                if schedule.name in overlay.answers
            ],
        )
        for schedule in series.schedules
    ]


def notes(schedule: ScheduleResult) -> list[str]:
    """Return notes that explain the pictures of a schedule."""
    hidden = len(schedule.gates) > SHOWN
    said = [f"The first, the middle and the last of {len(schedule.gates)} gates are shown."] if hidden else []
    return said + [note for kind, note in NOTES.items() if any(gate.kind == kind for gate in schedule.gates)]


def veil(kept: Collection[int], grid: tuple[int, int]) -> str:
    """Return an SVG path in units of patches: one horizontal stroke of width 1 per run of dropped patches."""
    rows, columns = grid
    alive, parts = set(kept), []
    for row in range(rows):
        start, pen = 0, None  # of the current run; end of the last stroke of this row
        for dropped, run in groupby(row * columns + column not in alive for column in range(columns)):
            length = len(list(run))
            if dropped:
                parts.append(f"M{start} {row}" if pen is None else f"m{start - pen} 0")
                parts.append(f"h{length}")
                pen = start + length
            start += length
    return "".join(parts)


def _picture(
    sample: int, overlay: Overlay, schedule: ScheduleResult, answered: Answered, grid: tuple[int, int]
) -> Picture:
    rows, columns = grid
    shown = shown_gates(len(answered.kept))
    height = PANEL * rows / columns
    width = (len(shown) + 1) * (PANEL + GAP) - GAP
    tokens = rows * columns
    names = [place(g.kind, layer) for g, layer in zip(schedule.gates, answered.layers, strict=True)]
    parts = [_panel(0, f"{tokens} tokens", sample, columns, "")]
    for at, j in enumerate(shown, start=1):
        caption = f"{names[j]}: {len(answered.kept[j])}"
        parts.append(_panel(at, caption, sample, columns, veil(answered.kept[j], grid)))
    kept = "; ".join(f"{name}: {len(k)} of {tokens}" for name, k in zip(names, answered.kept, strict=True))
    panels = Markup(
        '<svg class="panels" viewBox="0 0 {0} {1:.0f}" style="max-width:{0}px" role="img"><title>{2}</title>'
        "<desc>{3}</desc>{4}</svg>"
    ).format(
        width,
        height + CAPTION,
        f"What {schedule.name} keeps of sample {sample + 1}",
        f"Patches kept from {kept}" if kept else "No gate drops patches.",
        Markup("").join(parts),
    )
    return Picture(overlay, answered, panels)


def _panel(at: int, caption: str, sample: int, columns: int, dropped: str) -> Markup:
    left = at * (PANEL + GAP)
    over = Markup('<path class="veil" transform="translate(0 .5)" d="{}"/>').format(dropped) if dropped else ""
    return Markup(
        '<text x="{0}" y="13">{1}</text><g transform="translate({0} {2}) scale({3:.4g})">'
        '<use href="#image-{4}"/>{5}</g>'
    ).format(left, caption, CAPTION, PANEL / columns, sample, over)


def _data_uri(image: Image.Image) -> str:
    """Encode an image as PNG for the page, reduced to at most LARGEST pixels per side."""
    small = image.convert("RGB")
    small.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    held = io.BytesIO()
    small.save(held, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode("ascii")
