# SPDX-License-Identifier: Apache-2.0
"""Valid and invalid engines.json and cases.json."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from secateur.bundle.strict_json import read_json, to_json
from secateur.engines.cases import CASES_FILE, Case, Cases
from secateur.engines.manifest import Device, EnginePlan, Engines, Limits
from secateur.errors import BadEngine, BadMeasurement

DEVICE = Device("Orin", "8.7", 16, "10.3.0.30", "12.6", "12.6", "Linux-aarch64")
PLAN = EnginePlan("embed", "embed.plan", "00", "00", (), 1, 0.5)
ENGINES = Engines(DEVICE, Limits(), {"tf32": False}, (PLAN,))
CASE = Case("embed.decode", "embed", "decode", 1, {"x": (1, 0)}, ("full",))


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    (tmp_path / "engines.json").write_text(to_json(ENGINES))
    assert read_json(Engines, tmp_path / "engines.json", BadEngine) == ENGINES
    (tmp_path / CASES_FILE).write_text(to_json(Cases("00", (CASE,))))
    assert Cases.read(tmp_path) == Cases("00", (CASE,))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"plans": (PLAN, PLAN)}, "a graph has several plans"),
        ({"schema": 2}, "engines schema 2 is not known"),
    ],
)
def test_engines_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadEngine, match=message):
        dataclasses.replace(ENGINES, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"file": "../embed.plan"}, "'../embed.plan', which is outside its folder"),
        ({"memory": -1}, "needs -1 bytes"),
        ({"seconds": float("nan")}, "took nan s"),
    ],
)
def test_plans_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadEngine, match=re.escape(message)):
        dataclasses.replace(PLAN, **change)


@pytest.mark.parametrize("name", ["batch", "text", "new_tokens"])
def test_limits_refused(name: str) -> None:
    with pytest.raises(BadEngine, match=f"the limit '{name}' is 0; it must be at least 1"):
        Limits(**{name: 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "../x"}, "must be letters, digits"),
        ({"kind": "other"}, "use one of encode, prefill, decode"),
        ({"profile": 2}, "has the profile 2; it must be 0 or 1"),
        ({"shapes": {"x": (1, -1)}}, "a shape with a negative size"),
    ],
)
def test_cases_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BadMeasurement, match=message):
        dataclasses.replace(CASE, **change)


def test_cases_of_one_name_refused() -> None:
    with pytest.raises(BadMeasurement, match="two cases have the same name"):
        Cases("00", (CASE, CASE))
