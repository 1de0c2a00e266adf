# SPDX-License-Identifier: Apache-2.0
"""Figures as text: few digits, the same number of them down a column, a dash for what is undefined."""

from __future__ import annotations

from secateur.evaluation.retention import Interval
from secateur.report.formats import NONE


def score(value: float | None, full_marks: float = 1.0) -> str:
    """In per cent where full marks are 1, else on its own scale: 0.9342 is "93.4", 1520 of 2800 is "1,520.0"."""
    return NONE if value is None else f"{100 * value if full_marks == 1 else value:,.1f}"


def interval(pair: Interval | None, full_marks: float = 1.0) -> str:
    """Both ends as `score`: "91.2 to 95.0"."""
    return NONE if pair is None else " to ".join(score(end, full_marks) for end in pair)


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def megabytes(value: int) -> str:
    """Millions of bytes, two digits behind the point."""
    return f"{value / 1e6:,.2f}"


def tokens(value: float) -> str:
    return f"{value:,.1f}"


def headed(name: str) -> str:
    """A name at the head of a line: "CIDEr" stays, "accuracy" becomes "Accuracy"."""
    return name[:1].upper() + name[1:]


def unit(full_marks: float) -> str:
    """What `score` counts in."""
    return "%" if full_marks == 1 else f"of {full_marks:,g}"
