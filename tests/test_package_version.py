# SPDX-License-Identifier: Apache-2.0
"""Versions of installed packages; onnxruntime-gpu may be installed instead of onnxruntime."""

from __future__ import annotations

from importlib import metadata

import pytest

from secateur.export.bundle import versions
from secateur.machine import machine, package_version


def test_the_build_for_gpus_has_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def only_gpu(name: str) -> str:
        if name == "onnxruntime":
            raise metadata.PackageNotFoundError(name)
        return "1.31.0"

    monkeypatch.setattr(metadata, "version", only_gpu)
    assert package_version("onnxruntime") == versions()["onnxruntime"] == machine({})["onnxruntime"] == "1.31.0"


def test_a_package_that_is_not_there() -> None:
    assert package_version("no-such-package") == "not installed"
