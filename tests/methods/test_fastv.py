# SPDX-License-Identifier: Apache-2.0
"""FastV: one gate at layer K, scored by layer K - 1; scores are tested in selection/test_attention.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.fastv import Method
from secateur.selection.attention import Attended
from secateur.selection.budget import BudgetRequest

LLAVA = (32, (24, 24))


def test_published_defaults(measured: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest())
    assert [(g.layer, g.keep, g.kind, g.selector) for g in schedule.gates] == [(2, 288, "prune", {"query": "last"})]
    assert schedule.positions == "original"


@pytest.mark.parametrize(("average", "keep"), [(192, 166), (128, 98), (64, 30)])
def test_retaining_n_tokens_on_average(average: int, keep: int, measured: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest(compression=1 - average / 576))
    assert [(g.layer, g.keep) for g in schedule.gates] == [(2, keep)]
    assert schedule.budget.average_tokens == pytest.approx(average, abs=1)


def test_a_moved_gate_is_reported(measured: Any) -> None:
    """The gate moves from layer K only for a compression that K cannot reach."""
    assert Method().calibrate(measured(*LLAVA), BudgetRequest(compression=0.9)).calibration == {"moved": None}
    moved = Method().calibrate(measured(*LLAVA), BudgetRequest(compression=0.95))
    assert moved.gates[0].layer == 1 and moved.calibration == {"moved": [2, 1]}


def test_k_and_r_are_layers_and_keep(measured: Any) -> None:
    quarter = Method().calibrate(measured(*LLAVA), BudgetRequest(keep=(0.25,)))
    assert quarter.budget.average_tokens == 171
    demo = Method().calibrate(measured(*LLAVA), BudgetRequest(keep=(0.25,), layers=(3,)))
    assert [(g.layer, g.keep) for g in demo.gates] == [(3, 144)]


@pytest.mark.parametrize(("depth", "layer"), [(2, 1), (4, 1), (16, 1), (24, 2), (40, 2), (64, 4)])
def test_layer_scales_with_depth_and_is_never_the_first(depth: int, layer: int, measured: Any) -> None:
    assert [g.layer for g in Method().calibrate(measured(depth), BudgetRequest()).gates] == [layer]


def test_layer_before_the_gate_must_exist(measured: Any) -> None:
    with pytest.raises(BadSchedule, match="layer 0 must be at layer 1 or later"):
        Method().calibrate(measured(), BudgetRequest(layers=(0,)))


def test_option_reaches_the_gate(measured: Any, site: Any) -> None:
    reads = {}
    for query in ("last", "all"):
        gate = Method(query=query).calibrate(measured(), BudgetRequest()).gates[0]
        selector = Method.choose(site(gate, 20, (4, 5)))
        assert isinstance(selector, Attended)
        reads[query] = selector.reads
    assert reads == {"last": ("query", "key"), "all": ("queries", "key")}


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing_reads_nothing(keep: int, site: Any, random_rows: Any) -> None:
    selector = Method.choose(site(Gate(1, keep, selector={"query": "last"}), 20, (4, 5)))
    assert selector.reads == ()
    assert torch.equal(selector(random_rows(20, batch=2)), torch.arange(keep).expand(2, -1))


def test_onnx_of_the_average(site: Any, random_rows: Any, exported_slots: Any) -> None:
    selector = Method.choose(site(Gate(1, 7, selector={"query": "all"}), 20, (4, 5)))
    rows = random_rows(20, seed=5, whole=False)
    assert exported_slots([selector], [rows], [7], 20).outputs[0].tolist() == selector(rows).tolist()


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({}, "selector of a fastv gate: the constant 'query' is missing"),
        ({"query": "mean"}, "query 'mean' is not known; use one of last, all"),
        ({"query": "last", "k": 2}, "unknown constant 'k'; use query"),
        ({"query": 1}, "query is 1"),
    ],
)
def test_bad_selector_block(selector: dict[str, Any], message: str, site: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method.choose(site(Gate(1, 7, selector=selector), 20, (4, 5)))


def test_bad_option() -> None:
    with pytest.raises(BadSchedule, match="query 'mean'"):
        Method(query="mean")  # type: ignore[arg-type]
