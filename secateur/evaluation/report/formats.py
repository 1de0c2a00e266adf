# SPDX-License-Identifier: Apache-2.0
"""Numbers as text: few digits, equally many in a column, a dash for undefined values."""

from __future__ import annotations

from secateur.evaluation.retention import Interval
from secateur.report.formats import NONE


def score(value: float | None, full_marks: float = 1.0) -> str:
    """Format in percent if full marks are 1, else on the own scale: 0.9342 is "93.4", 1520 of 2800 is "1,520.0"."""
    return NONE if value is None else f"{100 * value if full_marks == 1 else value:,.1f}"


def interval(pair: Interval | None, full_marks: float = 1.0) -> str:
    """Format both ends as `score` does: "91.2 to 95.0"."""
    return NONE if pair is None else " to ".join(score(end, full_marks) for end in pair)


def probability(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def megabytes(value: int) -> str:
    """Format in millions of bytes, with two decimals."""
    return f"{value / 1e6:,.2f}"


def tokens(value: float) -> str:
    return f"{value:,.1f}"


def headed(name: str) -> str:
    """Capitalize the first letter: "CIDEr" stays, "accuracy" becomes "Accuracy"."""
    return name[:1].upper() + name[1:]


def unit(full_marks: float) -> str:
    """Return the unit of `score`."""
    return "%" if full_marks == 1 else f"of {full_marks:,g}"
