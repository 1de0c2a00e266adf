# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.commands.calling import call, refused


def test_a_table_of_bundles(demo_bundle: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    words = ("precision", demo_bundle[0], demo_bundle[0], "--questions", "4")
    code, out, _ = call(capsys, *words, "--json")
    result = json.loads(out)
    first, second = result["lines"]
    assert code == 0 and first["dtype"] == "fp32" and set(first["cells"]) == {"full", *demo_bundle[1]["schedules"]}
    assert first["cells"]["full"]["compared"] is None and second["cells"]["full"]["compared"]["only_full"] == 0
    assert call(capsys, *words)[1] == result["markdown"] + "\n"


def test_wrong_use(demo_bundle: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    assert "--batch is 0; it must be at least 1" in refused(capsys, "precision", demo_bundle[0], "--batch", "0")
