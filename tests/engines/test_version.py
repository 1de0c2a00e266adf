# SPDX-License-Identifier: Apache-2.0
"""Versions as written by TensorRT's packages."""

from __future__ import annotations

import pytest

from secateur.engines.version import Version
from secateur.errors import InputError


@pytest.mark.parametrize(
    ("text", "version", "printed"),
    [
        ("10.3", (10, 3, 0, 0), "10.3"),
        ("10.16.1.11", (10, 16, 1, 11), "10.16.1.11"),
        ("10.3.0.30+cuda12.6", (10, 3, 0, 30), "10.3.0.30"),
        ("10.3+cuda12.6", (10, 3, 0, 0), "10.3"),
        ("10.3.0.post12", (10, 3, 0, 0), "10.3"),
        ("11.0.0b1", (11, 0, 0, 0), "11.0"),
    ],
)
def test_versions(text: str, version: tuple[int, ...], printed: str) -> None:
    assert Version.parse(text) == version and str(Version.parse(text)) == printed


@pytest.mark.parametrize("text", ["", "10", "10.", "10.3.0.30.1", "v10.3", "10.3 ", "10.3+", "10.x", "1" * 7 + ".0"])
def test_invalid_versions(text: str) -> None:
    with pytest.raises(InputError, match="is not a TensorRT version"):
        Version.parse(text)
