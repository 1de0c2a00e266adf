# SPDX-License-Identifier: Apache-2.0
"""Text of milliseconds, and a dash for undefined values."""

from __future__ import annotations

NONE = "\N{EN DASH}"


def milliseconds(value: float | None, digits: int = 1) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"
