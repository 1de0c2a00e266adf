# SPDX-License-Identifier: Apache-2.0
"""The class-token method: its choice against plain sorting, and encoders without a class token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.families.base import Family
from secateur.methods.cls import Best, Method
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed, GateInputs


def rows_of(name: str, scores: torch.Tensor) -> GateInputs:
    index = torch.arange(scores.shape[1]).expand(scores.shape[0], -1)
    return GateInputs(torch.zeros(*scores.shape, 4), index, index, index, 0, {name: scores})


@given(st.lists(st.integers(0, 3), min_size=2, max_size=30), st.data())
def test_against_sorting(scores: list[int], data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, len(scores)))
    slots = Best(keep, "class_token.-2")(rows_of("class_token.-2", torch.tensor([scores]).float()))
    assert slots[0].tolist() == sorted(sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:keep])


def test_without_a_class_token_attention_received_scores(measured: Any, site: Any) -> None:
    statistics = measured()
    with_token = Method(score_layer=-1).calibrate(statistics, BudgetRequest(keep=(8,)))
    assert with_token.gates == (Gate(0, 8, "vision", {"score": "class_token", "score_layer": -1}),)
    bare = replace(statistics, dimensions=replace(statistics.dimensions, class_token=False))
    without = Method().calibrate(bare, BudgetRequest(keep=(8,)))
    assert without.gates == (Gate(0, 8, "vision", {"score": "received", "score_layer": -2}),)

    place = site(without.gates[0], 20, (4, 5))
    assert Method.choose(place).reads == ("received.-2",)
    place = replace(site(with_token.gates[0], 20, (4, 5)), dimensions=bare.dimensions)
    with pytest.raises(BadSchedule, match="class token, which this encoder does not have"):
        Method.choose(place)


@pytest.mark.parametrize("opset", [20, 23])
def test_onnx(opset: int, measured: Any, site: Any, random_rows: Any, exported_slots: Any) -> None:
    selector = Method.choose(site(Method().calibrate(measured(), BudgetRequest(keep=(0.4,))).gates[0], 20, (4, 5)))
    rows = random_rows(20)
    got = exported_slots([selector], [rows], [8], opset)
    np.testing.assert_array_equal(got.outputs[0], selector(rows).numpy())
    assert sum(node.op_type == "TopK" for node in got.graph.node) == 2


def test_on_the_demo(demo: Family) -> None:
    """Slots equal those of transformers' attention map, sorted in numpy; images of a batch are independent."""
    pixels = torch.randn(2, 3, *demo.bucket, generator=torch.Generator().manual_seed(0))
    features, scores = demo.vision(("class_token.-2",))(pixels)
    slots = Best(30, "class_token.-2")(rows_of("class_token.-2", scores))
    for i in range(2):
        single = demo.vision(("class_token.-2",))(pixels[i : i + 1])[1]
        assert slots[i].tolist() == sorted(np.argsort(-single[0].numpy(), kind="stable")[:30].tolist())
    assert slots[0].tolist() != slots[1].tolist() and features.shape[1] == 144


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({"score": "given"}, "selector of a cls gate: score 'given' is not known; use one of class_token, received"),
        ({"score_layer": 0}, "selector of a cls gate: score_layer 0 must be below 0"),
        ({"score_layer": 1.5}, "score_layer is 1.5"),
    ],
)
def test_bad_selector_block(selector: dict[str, Any], message: str, site: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method.choose(site(Gate(0, 5, "vision", selector), 20, (4, 5)))


def test_bad_options_and_requests(measured: Any) -> None:
    with pytest.raises(BadSchedule, match="score_layer 2 must be below 0"):
        Method(score_layer=2)
    with pytest.raises(BadSchedule, match="--layers 3,5 does not fit"):
        Method().calibrate(measured(), BudgetRequest(layers=(3, 5)))


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing_is_a_constant(keep: int, site: Any) -> None:
    selector = Method.choose(site(Gate(0, keep, "vision"), 20, (4, 5)))
    assert isinstance(selector, Fixed) and selector.slots.tolist() == list(range(keep))
