# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.artifacts import Budget, Gate, ModelIdentity, Schedule, check_gates, read_json, to_json
from secateur.errors import BadSchedule

MODEL = ModelIdentity("llava", 8, 100, "sha256:0")
BUDGET = Budget(50.0, 0.5, 0.1, 0.5, (1, 2))


def schedule(**changes: Any) -> Schedule:
    fields: dict[str, Any] = {
        "name": "s",
        "method": "btp",
        "model": MODEL,
        "gates": (Gate(2, 50),),
        "budget": BUDGET,
    } | changes
    return Schedule(**fields)


@pytest.mark.parametrize(
    ("gates", "message"),
    [
        ((Gate(3, 50), Gate(3, 20)), "gate layers must increase: layer 3 follows layer 3"),
        ((Gate(3, 50), Gate(2, 20)), "gate layers must increase"),
        ((Gate(8, 50),), "layer 8 is outside the model; its layers are 0 to 7"),
        ((Gate(2, 101),), "keeps 101 tokens of 100"),
        ((Gate(2, 50), Gate(3, 51)), "keeps 51 tokens of 50; kept counts must not grow"),
    ],
)
def test_bad_gates(gates: tuple[Gate, ...], message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        schedule(gates=gates)


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "-flag", "a b", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(BadSchedule, match="must be letters"):
        schedule(name=name)


@pytest.mark.parametrize("bad", [{"schema": 2}, {"positions": "rotated"}, {"gates": (Gate(1, 2, "prune"), Gate(1, 1))}])
def test_bad_fields(bad: dict[str, Any]) -> None:
    with pytest.raises(BadSchedule):
        schedule(**bad)
    with pytest.raises(BadSchedule, match="kind 'merge' is not known"):
        Gate(1, 2, "merge")
    with pytest.raises(BadSchedule, match="at least 0"):
        Gate(1, -1)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 100)), max_size=4))
def test_any_gates_are_taken_or_refused(pairs: list[tuple[int, int]]) -> None:
    gates = tuple(Gate(layer, keep) for layer, keep in pairs)
    layers, keeps = [p[0] for p in pairs], [p[1] for p in pairs]
    fine = layers == sorted(set(layers)) and keeps == sorted(keeps, reverse=True)
    if fine:
        check_gates(gates, 8, 100)
    else:
        with pytest.raises(BadSchedule):
            check_gates(gates, 8, 100)


def test_round_trip(tmp_path: Path) -> None:
    made = schedule(calibration={"tau": 0.93, "similarity": [0.1, 0.2], "moved": None})
    path = tmp_path / "s.json"
    path.write_text(to_json(made))
    assert read_json(Schedule, path, BadSchedule) == made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise": 1}, "unknown field 'surprise'"),
        ({"gates": [{"keep": 3}]}, r"gates\[0\] lacks the field 'layer'"),
        ({"gates": [{"keep": "3", "layer": 1}]}, r"gates\[0\].keep is '3', not a int"),
        ({"gates": [{"keep": True, "layer": 1}]}, "keep is True, not a int"),
        ({"gates": {}}, "gates is {}, not a list"),
        ({"model": None}, "model is None, not a object"),
        ({"name": 3}, "name is 3, not a str"),
    ],
)
def test_files_are_read_strictly(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(json.loads(to_json(schedule())) | change))
    with pytest.raises(BadSchedule, match=message):
        read_json(Schedule, path, BadSchedule)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"3"])
def test_what_is_no_schedule(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(BadSchedule, match="s.json"):
        read_json(Schedule, path, BadSchedule)
    with pytest.raises(BadSchedule, match="does not exist"):
        read_json(Schedule, tmp_path / "none.json", BadSchedule)
