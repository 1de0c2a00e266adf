# SPDX-License-Identifier: Apache-2.0
"""Text of results: JSON documents, and numbers with few digits and a dash for undefined values."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

NONE = "\N{EN DASH}"


@dataclass(frozen=True)
class Document:
    """Base class of the results of an evaluation and of a profile."""

    def as_dict(self) -> dict[str, Any]:
        """Return the document as plain values for JSON."""
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        """Return JSON text: keys in field order, two-space indent.

        Raises:
            ValueError: a figure is not finite.
        """
        return json.dumps(self.as_dict(), indent=2, allow_nan=False) + "\n"


def milliseconds(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def fine(value: float | None) -> str:
    """Format milliseconds of a graph or a layer, which may be a few hundredths."""
    return milliseconds(value, 3)


def percent(value: float | None) -> str:
    """Format a share: 0.042 gives "4.2"."""
    return NONE if value is None else f"{100 * value:.1f}"


def times(value: float | None) -> str:
    """Format a speed-up: "1.37x"."""
    return NONE if value is None else f"{value:.2f}x"


def plain(text: str) -> str:
    """Replace control characters, which layer names contain and a terminal would interpret."""
    return "".join(c if c.isprintable() else "\N{MIDDLE DOT}" for c in text)


def score(value: float | None, full_marks: float = 1.0) -> str:
    """Format in percent if full marks are 1, else on the own scale: 0.9342 is "93.4", 1520 of 2800 is "1,520.0"."""
    return NONE if value is None else f"{100 * value if full_marks == 1 else value:,.1f}"


def interval(pair: tuple[float, float] | None, full_marks: float = 1.0) -> str:
    """Format both ends as `score` does: "91.2 to 95.0"."""
    return NONE if pair is None else " to ".join(score(end, full_marks) for end in pair)


def unit(full_marks: float) -> str:
    """Return the unit of `score`."""
    return "%" if full_marks == 1 else f"of {full_marks:,g}"


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
