# SPDX-License-Identifier: Apache-2.0
"""Free memory of the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur import machine


@pytest.mark.parametrize(
    ("lines", "free"),
    [("MemFree: 1 kB\nMemAvailable:    2048 kB\n", 2 << 20), ("MemFree: 1 kB\n", None), (None, None)],
    ids=["Linux", "another Linux", "no Linux"],
)
def test_free_memory_is_known_only_on_linux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str | None, free: int | None
) -> None:
    if lines is not None:
        (tmp_path / "meminfo").write_text(lines)
    monkeypatch.setattr(machine, "Path", lambda name: tmp_path / Path(name).name)
    assert machine.free_memory() == free
