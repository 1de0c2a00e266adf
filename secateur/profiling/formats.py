# SPDX-License-Identifier: Apache-2.0
"""Text of figures, for the HTML page and the printed tables."""

from __future__ import annotations

from secateur.report import formats
from secateur.report.formats import NONE

APART = (
    "trtexec timed the graphs one by one; a chain is the sum of its graphs, without preprocessing and the time "
    "between graphs. Percentiles of separate runs do not add up: p99 is the sum of the graphs' p99, an upper estimate."
)
IN_TURN = "All schedules were asked the same question, in turn, in one process; one image and one question at a time."


def milliseconds(value: float | None) -> str:
    return formats.milliseconds(value, 2)


def fine(value: float | None) -> str:
    """Format milliseconds of a graph or a layer, which may be a few hundredths."""
    return formats.milliseconds(value, 3)


def percent(value: float | None) -> str:
    """Format a share: 0.042 gives "4.2"."""
    return NONE if value is None else f"{100 * value:.1f}"


def times(value: float | None) -> str:
    """Format a speed-up: "1.37x"."""
    return NONE if value is None else f"{value:.2f}x"


def plain(text: str) -> str:
    """Replace control characters, which layer names contain and a terminal would interpret."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def note(apart: bool) -> str:
    """Return how the times were taken, see Profiling.apart."""
    return APART if apart else IN_TURN
