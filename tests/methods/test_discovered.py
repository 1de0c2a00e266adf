# SPDX-License-Identifier: Apache-2.0
"""Every method file is tested here without an edit: its schedules, its slots, and its selectors in ONNX Runtime."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import secateur.methods
from secateur import plugins
from secateur.bundle.schedule import Gate, Schedule
from secateur.bundle.strict_json import to_json
from secateur.errors import BadSchedule
from secateur.methods.base import Method
from secateur.selection.budget import BudgetRequest, budget
from secateur.selection.selector import Fixed, Selector

NAMES = plugins.names(secateur.methods)
GRID, LAYERS = (4, 5), 16
CHANGE = [0, 0, 0, 0.02, 0.1, 0.4, 0.5, 0.3, 0.2, 0.25, 0.1, 0.02, 0, 0, 0, 0.6]


@pytest.fixture(params=NAMES)
def method(request: pytest.FixtureRequest) -> Method:
    made = plugins.load(secateur.methods, request.param, "method").Method()
    assert isinstance(made, Method)
    return made


def selectors(method: Method, schedule: Schedule, site: Callable[..., Any]) -> list[tuple[Selector, int, int]]:
    """Selector, N and k of each gate that selects."""
    out, tokens = [], schedule.model.vision_tokens
    for gate in schedule.gates:
        if gate.kind != "downsample":
            out.append((type(method).choose(site(gate, tokens, GRID, schedule.tensors)), tokens, gate.keep))
        tokens = tokens if gate.kind == "route" else gate.keep
    return out


@pytest.mark.parametrize(
    "asked",
    [
        BudgetRequest(),
        BudgetRequest(compression=0.8),
        BudgetRequest(keep=(1.0,)),
        BudgetRequest(keep=(0.4,)),
        BudgetRequest(keep=(1.0, 0.5, 3, 2)),
        BudgetRequest(keep=(0.3,), layers=(5,)),
        BudgetRequest(keep=(0.5, 0.0), layers=(2, 9)),
    ],
    ids=["default", "compression", "all", "share", "keep", "one", "none"],
)
@pytest.mark.parametrize("known", [True, False], ids=["measured", "unmeasured"])
def test_schedule_and_slots(
    method: Method, asked: BudgetRequest, known: bool, measured: Any, site: Any, random_rows: Any
) -> None:
    statistics = measured(LAYERS, GRID, CHANGE if known else None)
    try:
        schedule = method.calibrate(statistics, asked)
    except BadSchedule as refusal:
        assert asked.keep is not None and asked.keep != (1.0,), "a method must not refuse a compression, or to keep all"
        assert "\n" not in str(refusal)
        return
    again = method.calibrate(statistics, asked)
    assert to_json(schedule) == to_json(again)
    assert json.loads(to_json(schedule))["gates"]
    assert schedule.budget == budget(statistics.dimensions, statistics.model.vision_tokens, schedule.gates)
    if asked.keep == (1.0,):
        assert {gate.keep for gate in schedule.gates} == {statistics.model.vision_tokens}
    if asked.layers is not None:
        assert tuple(gate.layer for gate in schedule.gates) == asked.layers
    if asked.compression is not None:
        assert abs(schedule.budget.compression - asked.compression) < 0.05
    for batch in (1, 3):
        for selector, tokens, keep in selectors(method, schedule, site):
            slots = selector(random_rows(tokens, batch=batch))
            assert slots.dtype == torch.int64 and slots.shape == (batch, keep)
            assert bool((slots.diff(dim=1) > 0).all())
            assert bool(((slots >= 0) & (slots < tokens)).all())


def test_a_misspelt_constant_is_refused(method: Method, measured: Any, site: Any) -> None:
    gates = method.calibrate(measured(LAYERS, GRID, CHANGE), BudgetRequest(compression=0.6)).gates
    if gates[0].kind == "downsample":
        pytest.skip("chooses nothing: the image is made smaller")
    gate = replace(gates[0], keep=gates[0].keep or 5, selector={**gates[0].selector, "stratgy": "row"})
    with pytest.raises(BadSchedule, match=f"selector of a {method.name} gate: unknown constant 'stratgy'"):
        type(method).choose(site(gate, GRID[0] * GRID[1], GRID))


def test_all_or_none_is_a_constant(method: Method, site: Any) -> None:
    """Of every method alike, and without reading anything; what is neither all, none nor between is refused."""
    for keep in (0, 20):
        selector = type(method).choose(site(Gate(3, keep), 20, GRID))
        assert isinstance(selector, Fixed) and selector.reads == () and selector.slots.tolist() == list(range(keep))
    with pytest.raises(BadSchedule, match="keep 21 of the gate at layer 3 must be within 0 and 20"):
        type(method).choose(site(Gate(3, 21), 20, GRID))


@pytest.mark.parametrize("opset", [20, 23])
def test_onnx_chooses_the_same(
    method: Method, opset: int, measured: Any, site: Any, random_rows: Any, exported_slots: Any
) -> None:
    statistics, gates = measured(LAYERS, GRID, CHANGE), []
    for asked in (BudgetRequest(keep=(1.0, 0.4, 3, 0.0)), BudgetRequest(compression=0.6), BudgetRequest(keep=(1.0,))):
        with suppress(BadSchedule):
            gates += selectors(method, method.calibrate(statistics, asked), site)[:3]
    if not gates:
        pytest.skip("chooses nothing: the image is made smaller")
    fed = [random_rows(tokens) for _, tokens, _ in gates]
    got = exported_slots([selector for selector, _, _ in gates], fed, [keep for _, _, keep in gates], opset)
    for (selector, _, _), rows, slots in zip(gates, fed, got.outputs, strict=True):
        np.testing.assert_array_equal(slots, selector(rows).numpy())


@pytest.mark.parametrize(
    ("name", "options", "asked"),
    [
        ("pdrop", {"ratio": 0.4}, BudgetRequest(keep=(0.5, 0.25))),
        ("vtw", {"start": 3}, BudgetRequest(compression=0.5)),
        ("fitprune", {"gates": 2}, BudgetRequest(layers=(2, 5))),
    ],
)
def test_an_option_without_effect_is_refused(
    name: str, options: dict[str, Any], asked: BudgetRequest, measured: Any
) -> None:
    method = plugins.load(secateur.methods, name, "method").Method(**options)
    with pytest.raises(BadSchedule, match="changes nothing"):
        method.calibrate(measured(LAYERS, GRID, CHANGE), asked)
    with pytest.raises(BadSchedule, match="passes 2 changes nothing with selectors 'svd'"):
        plugins.load(secateur.methods, "alvts", "method").Method(selectors="svd", passes=2)
