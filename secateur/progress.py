# SPDX-License-Identifier: Apache-2.0
"""Progress callbacks of long work."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, str, int, int], None]
"""Progress callback; arguments: stage, current item, steps done, all steps."""


def silent(stage: str, note: str, done: int, total: int) -> None:
    """No-op callback."""
