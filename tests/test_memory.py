# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from secateur import memory


def test_memory_is_told_only_by_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    free = memory.free_memory()
    assert free is None or 0 < free < 1 << 50
    monkeypatch.setattr(memory, "Path", lambda name: Path("/nowhere"))
    assert memory.free_memory() is None
