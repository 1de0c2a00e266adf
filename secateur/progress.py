# SPDX-License-Identifier: Apache-2.0
"""How long work says how far it is."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, str, int, int], None]
"""Told (stage, what is at work, steps done, steps in all)."""


def silent(stage: str, note: str, done: int, total: int) -> None:
    """Nobody wants to know."""
