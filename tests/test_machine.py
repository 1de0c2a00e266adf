# SPDX-License-Identifier: Apache-2.0
"""Free memory, and versions of installed packages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from secateur import machine
from secateur.export.bundle import versions


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


def test_the_build_for_gpus_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu may be installed instead of onnxruntime."""

    def only_gpu(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.31.0"

    monkeypatch.setattr(metadata, "version", only_gpu)
    assert (
        machine.package_version("onnxruntime")
        == versions()["onnxruntime"]
        == machine.machine({})["onnxruntime"]
        == "1.31.0"
    )


def test_a_package_that_is_not_there() -> None:
    assert machine.package_version("no-such-package") == "not installed"
