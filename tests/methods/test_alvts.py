# SPDX-License-Identifier: Apache-2.0
"""ALVTS schedules from statistics and a request."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.bundle.layout import Dimensions, Layout, ModelIdentity, View
from secateur.bundle.strict_json import to_json
from secateur.errors import BadSchedule
from secateur.methods.alvts import Method
from secateur.selection import alignment, low_rank
from secateur.selection.budget import BudgetRequest
from secateur.selection.low_rank import importance
from secateur.selection.selector import Fixed, GateInputs
from secateur.selection.statistics import Statistics
from secateur.selection.topk import best
from tests.model_fixtures.gates import learnable

DEPTH, GRID, TOKENS = 6, (4, 5), 20
METHOD = Method(learning_rate=1e-2)
HALF = BudgetRequest(keep=(0.5,))
LLAVA_7B = Dimensions(32, 4096, 32, 32, 128, 11008, 32000, 4096, 1024)
LLAVA_13B = Dimensions(40, 5120, 40, 40, 128, 13824, 32000, 4096, 1024)
QWEN_3B = Dimensions(36, 2048, 16, 2, 128, 11008, 151936, 4096, 1280)
SMOL = Dimensions(32, 960, 15, 5, 64, 2560, 49152, 4096, 768)


@pytest.fixture
def statistics(measured: Callable[..., Statistics]) -> Statistics:
    made: Statistics = measured(DEPTH, GRID, [0.0] * DEPTH)
    return made


@pytest.fixture
def thin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a rank below that of the layers, whose width is 16."""
    monkeypatch.setattr(low_rank, "default_rank", lambda dimensions: 6)


def test_a_gate_at_every_layer(statistics: Statistics) -> None:
    schedule = Method(passes=1).calibrate(statistics, BudgetRequest())
    assert [(gate.layer, gate.keep, gate.kind) for gate in schedule.gates] == [(i, 4, "route") for i in range(DEPTH)]
    assert {gate.selector["rank"] for gate in schedule.gates} == {32}
    assert schedule.budget.average_tokens == 4
    d = statistics.dimensions
    shapes = {
        "down": (32, d.width),
        "query_up": (d.heads * d.head_dim, d.width),
        "key_up": (d.kv_heads * d.head_dim, d.width),
    }
    assert {name: array.shape for name, array in schedule.tensors.items()} == {
        f"layer_{layer:02}.{part}": shape for layer in range(DEPTH) for part, shape in shapes.items()
    }
    assert {array.dtype for array in schedule.tensors.values()} == {np.dtype(np.float32)}


def test_report(statistics: Statistics, thin: None) -> None:
    schedule = Method(passes=2, learning_rate=1e-2).calibrate(learnable(statistics), HALF)
    report = json.loads(to_json(schedule))["calibration"]
    assert report == schedule.calibration
    assert report["samples"] == 8 and report["selectors"] == "calibrated" and report["rank"] == 6
    assert [line["layer"] for line in report["layers"]] == list(range(DEPTH))
    for line in report["layers"]:
        assert line["choice_overlap_before"] <= line["choice_overlap"] <= 1 and 0 < line["choice_mass"] <= 1
        assert line["passes"] in (0, 1, 2)
    assert any(line["choice_overlap_before"] < line["choice_overlap"] < 1 for line in report["layers"])
    assert 0 < report["mean_jaccard"] < 1  # the layers choose differently
    d = statistics.dimensions
    assert report["text_rows"] == 5  # 3 of the head, 2 of the question
    selector, dense, pruned = (
        low_rank.selector_macs(d, 6, 25), low_rank.layer_macs(d, 25), low_rank.layer_macs(d, 15)
    )  # fmt: skip
    assert report["selector_flops"] == 2 * selector
    assert report["selector_share_of_dense_flops"] == pytest.approx(selector / dense, abs=1e-6)
    assert report["selector_share_of_pruned_flops"] == pytest.approx(selector / pruned, abs=1e-6)
    assert report["pruned_and_selector_of_dense_flops"] == pytest.approx((pruned + selector) / dense, abs=1e-6)
    assert report["selector_parameters"] == sum(
        schedule.tensors[f"layer_00.{p}"].size for p in low_rank.Factors._fields
    )


def test_plain_decomposition(statistics: Statistics, thin: None) -> None:
    schedule = Method(selectors="svd").calibrate(statistics, HALF)
    assert statistics.layers is not None
    for layer in statistics.layers():
        for part, factor in low_rank.svd(layer.projections, 6)._asdict().items():
            np.testing.assert_array_equal(schedule.tensors[f"layer_{layer.number:02}.{part}"], factor.numpy())
    lines = schedule.calibration["layers"]
    assert (
        all(line["choice_overlap"] == line["choice_overlap_before"] for line in lines)
        and lines[0]["choice_overlap"] < 1
    )


def test_full_rank_needs_no_tuning(statistics: Statistics) -> None:
    """Rank 32 exceeds the width 16 of the layer, so the selector is exact."""
    report = Method(selectors="svd").calibrate(statistics, HALF).calibration
    assert all(line["choice_overlap"] == 1 and line["choice_mass"] == 1 for line in report["layers"])


def test_without_samples(statistics: Statistics, measured: Any) -> None:
    schedule = Method().calibrate(measured(DEPTH, GRID), HALF)
    bare = Method(selectors="svd").calibrate(statistics, HALF)
    assert schedule.calibration["note"].startswith("nothing was measured")
    assert all(np.array_equal(array, bare.tensors[name]) for name, array in schedule.tensors.items())


def test_dense_layers_and_groups(statistics: Statistics) -> None:
    schedule = Method(dense_layers=1, group=2, passes=1).calibrate(statistics, HALF)
    assert [gate.layer for gate in schedule.gates] == [1, 3, 5]
    assert schedule.budget.average_tokens == pytest.approx((20 + 5 * 10) / 6, abs=1e-6)
    assert schedule.calibration["group"] == 2 and len(schedule.tensors) == 9


@settings(max_examples=80)
@given(share=st.floats(0.001, 1), tokens=st.integers(1, 600))
def test_ratio_is_rounded_down(share: float, tokens: int) -> None:
    keep = Method()._keep(BudgetRequest(keep=(share,)), 4, tokens)
    assert keep == max(1, math.floor(share * tokens + 1e-9))


@pytest.mark.parametrize(("ratio", "keep"), [(1 / 3, 192), (2 / 9, 128), (1 / 9, 64), (64, 64), (1.0, 576), (0, 0)])
def test_published_ratios(ratio: float, keep: int) -> None:
    assert Method()._keep(BudgetRequest(keep=(ratio,)), 32, 576) == keep
    assert Method()._keep(BudgetRequest(), 32, 576) == 128


@settings(max_examples=80)
@given(compression=st.floats(0, 0.99), dense=st.integers(0, 7), tokens=st.integers(1, 200))
def test_compression_is_met_as_closely_as_whole_tokens_allow(compression: float, dense: int, tokens: int) -> None:
    method, depth = Method(dense_layers=dense), 8

    def reached(keep: int) -> float:
        return 1 - (dense * tokens + (depth - dense) * keep) / (depth * tokens)

    asked = BudgetRequest(compression=compression)
    if compression > reached(1):
        with pytest.raises(BadSchedule, match="out of reach"):
            method._keep(asked, depth, tokens)
        return
    error = abs(reached(method._keep(asked, depth, tokens)) - compression)
    assert error <= min(abs(reached(keep) - compression) for keep in range(1, tokens + 1)) + 1e-9


@pytest.mark.parametrize("keep", [1.0, 0.0])
def test_all_or_none(statistics: Statistics, site: Any, random_rows: Any, keep: float) -> None:
    schedule = Method().calibrate(statistics, BudgetRequest(keep=(keep,)))
    assert not schedule.tensors and len(schedule.gates) == DEPTH
    selector = Method.choose(site(schedule.gates[0], TOKENS, GRID, schedule.tensors))
    assert isinstance(selector, Fixed)
    assert selector(random_rows(TOKENS, batch=1)).tolist() == [list(range(int(keep * TOKENS)))]


def test_the_report_agrees_with_the_gate(statistics: Statistics, site: Any, thin: None) -> None:
    """The reported overlap is that of the gate's slots with the layer's own best tokens, on the held-out samples."""
    statistics = learnable(statistics)
    schedule = METHOD.calibrate(statistics, HALF)
    layout = statistics.layout
    _, held_out = alignment.split(8, statistics.seed)
    assert statistics.layers is not None
    for layer in statistics.layers():
        batch = alignment.pad([layer.rows[i] for i in held_out], layout)
        index = torch.arange(TOKENS).expand(len(held_out), -1)
        rows = GateInputs(batch.rows, batch.position_ids, batch.attention_mask, index, layout.image_start, {})
        slots = Method.choose(site(schedule.gates[layer.number], TOKENS, GRID, schedule.tensors))(rows)
        exact = low_rank.queries_and_keys(None, layer.projections, batch.rows, batch.position_ids)
        truth = best(importance(*exact, batch.attention_mask, layout.image_start, TOKENS), 10)
        shared = [len(set(a) & set(b)) / 10 for a, b in zip(slots.tolist(), truth.tolist(), strict=True)]
        assert schedule.calibration["layers"][layer.number]["choice_overlap"] == pytest.approx(
            np.mean(shared), abs=1e-6
        )
    assert any(line["passes"] for line in schedule.calibration["layers"])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (BudgetRequest(layers=(2, 4)), "--dense-layers and --group"),
        (BudgetRequest(keep=(0.5, 0.2)), "2 values; give one"),
        (BudgetRequest(keep=(0.5,), compression=0.5), "give one of them"),
        (BudgetRequest(keep=(21,)), "21 tokens of 20"),
        (BudgetRequest(keep=(-0.5,)), "at least 0"),
        (BudgetRequest(compression=1.0), "at most 0.9"),
        (BudgetRequest(compression=-0.1), "at least 0"),
    ],
)
def test_impossible_requests(statistics: Statistics, asked: BudgetRequest, message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method().calibrate(statistics, asked)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 48}, "rank 48"),
        ({"rank": 0}, "rank 0"),
        ({"group": 0}, "group 0"),
        ({"dense_layers": -1}, "dense_layers -1"),
        ({"passes": 0}, "passes 0"),
        ({"learning_rate": 0.0}, "learning_rate 0"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"positions": "compact"}, "compact"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method(**options)


def test_impossible_layers(statistics: Statistics) -> None:
    with pytest.raises(BadSchedule, match="dense_layers 6 leaves no layer of 6; at most 5"):
        Method(dense_layers=6).calibrate(statistics, HALF)
    with pytest.raises(BadSchedule, match="were not measured"):
        Method().calibrate(replace(statistics, layers=None), HALF)


def test_published_rank_is_the_default() -> None:
    """LLaVA-7B gets rank 256; a schedule that keeps all tokens needs no measurement."""
    model = ModelIdentity("llava", 32, 576, "sha256:0")
    bare = Statistics(model, LLAVA_7B, Layout((0,) * 35, (View(35, 576, (24, 24)),)), 0, 0)
    schedule = Method().calibrate(bare, BudgetRequest(keep=(1.0,)))
    assert [gate.selector["rank"] for gate in schedule.gates] == [256] * 32


@pytest.mark.parametrize(
    ("shape", "rank", "millions", "percent"),
    [(LLAVA_7B, 256, 4.2, 2.0), (LLAVA_13B, 256, 5.2, 1.7), (QWEN_3B, 128, 0.8, 1.1)],
)
def test_table_4(shape: Dimensions, rank: int, millions: float, percent: float) -> None:
    assert low_rank.default_rank(shape) == rank
    weights = low_rank.parameters(shape, rank)
    assert round(weights / 1e6, 1) == millions
    assert 100 * weights / low_rank.layer_parameters(shape) == pytest.approx(percent, abs=0.1)


def test_rank_of_other_shapes_is_two_percent() -> None:
    assert low_rank.default_rank(SMOL) == 32
    assert low_rank.parameters(SMOL, 64) / low_rank.layer_parameters(SMOL) == pytest.approx(0.0208, abs=1e-4)
    mistral = Dimensions(32, 4096, 32, 8, 128, 14336, 32000, 4096, 1024)
    rank = low_rank.default_rank(mistral)
    shares = [low_rank.parameters(mistral, r) / low_rank.layer_parameters(mistral) for r in (rank, rank + 32)]
    assert rank % 32 == 0 and shares[0] <= 0.02 < shares[1]
    small = Dimensions(2, 24, 4, 2, 6, 32, 16, 64, 24)
    assert low_rank.default_rank(small) == 32
    assert low_rank.parameters(small, 32) == 24 * 48 + 12 * 36  # the rank is limited by the matrices


@pytest.mark.parametrize(
    ("shape", "tokens", "selector", "dense"), [(LLAVA_7B, 576, 4.36, 132.9), (QWEN_3B, 1024, 3.3, 88.7)]
)
def test_cost_model(shape: Dimensions, tokens: int, selector: float, dense: float) -> None:
    rows = tokens + 64
    assert low_rank.selector_macs(shape, low_rank.default_rank(shape), rows) / 1e9 == pytest.approx(selector, abs=0.05)
    assert low_rank.layer_macs(shape, rows) / 1e9 == pytest.approx(dense, abs=0.05)
