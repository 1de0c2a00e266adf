# SPDX-License-Identifier: Apache-2.0
"""Base class of dataclasses that are stored as JSON."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any


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
