# SPDX-License-Identifier: Apache-2.0
"""Checks of schedules, gates and image sizes, and strict reading of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.manifest import Bucket, GateRef, GraphSpec, Manifest, ScheduleRef
from secateur.bundle.schedule import Budget, Gate, Schedule, ViewGate, check_gates
from secateur.bundle.strict_json import read_json, to_json
from secateur.errors import BadBundle, BadSchedule

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
    with pytest.raises(BadSchedule, match="must be of letters"):
        schedule(name=name)


@pytest.mark.parametrize("bad", [{"schema": 3}, {"positions": "rotated"}, {"gates": (Gate(1, 2, "prune"), Gate(1, 1))}])
def test_bad_fields(bad: dict[str, Any]) -> None:
    with pytest.raises(BadSchedule):
        schedule(**bad)
    with pytest.raises(BadSchedule, match="kind 'merge' is not known"):
        Gate(1, 2, "merge")
    with pytest.raises(BadSchedule, match="at least 0"):
        Gate(1, -1)


@given(st.lists(st.tuples(st.integers(0, 7), st.integers(0, 100)), max_size=4))
def test_any_gates_are_accepted_or_refused(pairs: list[tuple[int, int]]) -> None:
    gates = tuple(Gate(layer, keep) for layer, keep in pairs)
    layers, keeps = [p[0] for p in pairs], [p[1] for p in pairs]
    fine = layers == sorted(set(layers)) and keeps == sorted(keeps, reverse=True)
    if fine:
        check_gates(gates, 8, 100)
    else:
        with pytest.raises(BadSchedule):
            check_gates(gates, 8, 100)


def test_routing_gates_choose_among_all_tokens() -> None:
    """Their counts may grow, but they cannot be combined with other kinds or with compact positions."""
    routes = (Gate(2, 20, "route"), Gate(3, 50, "route"))
    assert schedule(gates=routes).gates == routes
    with pytest.raises(BadSchedule, match="keeps 101 tokens of 100"):
        schedule(gates=(routes[0], Gate(3, 101, "route")))
    with pytest.raises(BadSchedule, match="cannot be combined with other kinds"):
        schedule(gates=(Gate(2, 50), Gate(3, 20, "route")))
    with pytest.raises(BadSchedule, match="'compact' cannot be used with gates of kind 'route'"):
        schedule(gates=routes, positions="compact")


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
        ({"gates": [{"keep": "3", "layer": 1}]}, r"gates\[0\].keep is '3', not an integer"),
        ({"gates": [{"keep": True, "layer": 1}]}, "keep is True, not an integer"),
        ({"gates": {}}, "gates is {}, not a list"),
        ({"model": None}, "model is None, not an object"),
        ({"name": 3}, "name is 3, not a string"),
    ],
)
def test_files_are_read_strictly(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(json.dumps(json.loads(to_json(schedule())) | change))
    with pytest.raises(BadSchedule, match=message):
        read_json(Schedule, path, BadSchedule)


@pytest.mark.parametrize("number", ["NaN", "1e999", "-Infinity", "1" + 400 * "0", "true", '"1"'])
def test_numbers_are_finite(tmp_path: Path, number: str) -> None:
    path = tmp_path / "s.json"
    path.write_text(to_json(schedule()).replace('"average_tokens": 50.0', f'"average_tokens": {number}'))
    with pytest.raises(BadSchedule, match="budget.average_tokens is .*, not a (finite number|float)"):
        read_json(Schedule, path, BadSchedule)
    path.write_text(to_json(schedule()).replace('"average_tokens": 50.0', '"average_tokens": 50'))
    assert read_json(Schedule, path, BadSchedule) == schedule()


def test_a_schedule_of_an_earlier_version(tmp_path: Path) -> None:
    """Schema 1 had neither image size nor number of images."""
    old = json.loads(to_json(schedule())) | {"schema": 1}
    del old["model"]["image_size"], old["model"]["images"]
    path = tmp_path / "s.json"
    path.write_text(json.dumps(old))
    with pytest.raises(BadSchedule, match="schema 1 is not known, this version reads schema 2; calibrate it again"):
        read_json(Schedule, path, BadSchedule)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"3"])
def test_files_that_are_not_a_schedule(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(content)
    with pytest.raises(BadSchedule, match="s.json"):
        read_json(Schedule, path, BadSchedule)
    with pytest.raises(BadSchedule, match="does not exist"):
        read_json(Schedule, tmp_path / "none.json", BadSchedule)


def test_a_gate_of_several_views() -> None:
    parts = (ViewGate(3, {"a": 1}), ViewGate(0, {"a": 2}, "view_1."))
    gate = Gate(2, 3, parts=parts)
    assert gate.of_views == parts and Gate(2, 3, selector={"a": 1}).of_views == (ViewGate(3, {"a": 1}),)
    for wrong in ({"keep": 4}, {"selector": {"a": 1}}):
        with pytest.raises(BadSchedule, match="gate at layer 2 with parts must keep"):
            Gate(**{"layer": 2, "keep": 3, "parts": parts} | wrong)  # type: ignore[arg-type]
    with pytest.raises(BadBundle, match="gate 'g' keeps 4 tokens, but 3 over its views"):
        GateRef(2, "g", 4, views=(3, 0))


def two_sizes(**changes: Any) -> Manifest:
    """Return a manifest with two image sizes: one view of four tokens, and two views of three tokens."""
    graphs = [GraphSpec(name, "vision", f"{name}.onnx", (), ()) for name in ("vision", "vision-6x4")]
    graphs += [GraphSpec(name, "gate", f"{name}.onnx", (), (), (1, 1)) for name in ("s.0", "s@6x4.0")]
    graphs.append(GraphSpec("segment_0", "segment", "segment_0.onnx", (), (), (0, 2)))
    small = Layout((1,), (View(1, 4, (2, 2)),), image_size=(4, 4))
    wide = Layout((1, 2), (View(1, 3, (1, 3)), View(5, 3, (1, 3))), image_size=(4, 6), vision="vision-6x4")
    other = Bucket(wide, {"s": ScheduleRef("s@6x4.json", (GateRef(1, "s@6x4.0", 2, views=(1, 1)),))})
    fields: dict[str, Any] = {
        "model": ModelIdentity("llava", 2, 4, "sha256:0", "4x4"),
        "source": "x",
        "target": "cpu",
        "dtype": "fp32",
        "opset": 20,
        "dimensions": Dimensions(2, 8, 2, 1, 4, 16, 99, 64, 8),
        "layout": small,
        "graphs": tuple(graphs),
        "schedules": {"s": ScheduleRef("s.json", (GateRef(1, "s.0", 2),))},
        "files": {},
        "versions": {},
        "others": (other,),
    }
    return Manifest(**fields | changes)


def test_a_manifest_for_each_image_size(tmp_path: Path) -> None:
    made = two_sizes()
    first, second = made.buckets
    assert [g.name for g in first.graphs] == ["vision", "s.0", "segment_0"]
    assert [g.name for g in second.graphs] == ["vision-6x4", "s@6x4.0", "segment_0"]
    assert (first.model, second.model.vision_tokens, second.model.image_size) == (made.model, 6, "6x4")
    assert second.vision.name == "vision-6x4" and second.layout.preprocess == "preprocess-6x4.json"
    assert second.schedules["s"].gates[0].of_views == (1, 1) and second.buckets == (second,)
    (tmp_path / "manifest.json").write_text(to_json(made))
    assert read_json(Manifest, tmp_path / "manifest.json", BadBundle) == made


def test_inconsistent_image_sizes_are_refused() -> None:
    made = two_sizes()
    with pytest.raises(BadBundle, match="has an image size twice"):
        two_sizes(others=made.others * 2)
    for file in ("../x", "/x", ""):
        lost = Bucket(made.others[0].layout, {"s": ScheduleRef(file, ())})
        with pytest.raises(BadBundle, match="outside of the bundle"):
            two_sizes(others=(lost,))
    with pytest.raises(BadBundle, match="needs the graph 's@6x4.0', which is not in the manifest"):
        two_sizes(graphs=made.graphs[:3])
