# SPDX-License-Identifier: Apache-2.0
"""The layer at which VTW drops the image, and refused requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.schedule import Gate, Schedule
from secateur.errors import BadSchedule
from secateur.methods.vtw import Method, _nearest
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed


def dropped(
    measured: Any, divergence: Sequence[float], request: BudgetRequest | None = None, **options: Any
) -> Schedule:
    """Return the schedule for these mean divergences by layer, of two samples that differ."""
    statistics = measured(len(divergence), (24, 24), [0.0] * len(divergence))
    mean = np.array(divergence, np.float32)[:, None]
    statistics = replace(statistics, drop_divergence=np.concatenate([0.5 * mean, 1.5 * mean], axis=1))
    return Method(**options).calibrate(statistics, request or BudgetRequest())


def test_first_layer_within_eta(measured: Any) -> None:
    divergence = [1.0, 0.5, 0.001, 0.2, 0.1, *np.linspace(0.09, 0.01, 10), 0.0029, 0.004, *[0.0] * 15]
    schedule = dropped(measured, divergence)
    # Layer 2 is within eta too, but the search starts at layer 5; layer 15 is the published one of LLaVA-1.5-7B.
    assert [(gate.layer, gate.keep, gate.kind) for gate in schedule.gates] == [(15, 0, "prune")]
    assert schedule.budget.average_tokens == 270 and schedule.positions == "original"
    report = schedule.calibration
    assert report["layer_from"] == "search" and report["samples"] == 2 and not report["exceeds_eta"]
    assert report["mean_kl"] == pytest.approx(divergence, abs=1e-6) and not report["note"]
    assert dropped(measured, divergence, eta=0.001).gates[0].layer == 17
    assert dropped(measured, divergence, start=1).gates[0].layer == 2
    assert dropped(measured, divergence, eta=0.2).gates[0].layer == 5


def test_start_is_scaled_by_depth(measured: Any) -> None:
    for depth, start in ((32, 5), (40, 6), (16, 2), (8, 1), (4, 1)):
        assert dropped(measured, [0.0] * depth, eta=0.0).gates[0].layer == start


def test_the_last_layer_if_none_is_cheap_enough(measured: Any) -> None:
    schedule = dropped(measured, [0.1] * 16)
    assert schedule.gates[0].layer == 15 and schedule.calibration["exceeds_eta"]
    assert "no layer from 2 on costs at most 0.003 nats" in schedule.calibration["note"]


def test_the_report_of_a_given_budget_compares_with_eta(measured: Any) -> None:
    divergence = [0.1] * 8 + [0.001] * 8
    for request, layer, exceeds in (
        (BudgetRequest(compression=0.5), 8, False),
        (BudgetRequest(compression=0.55), 7, True),
        (BudgetRequest(layers=(3,)), 3, True),
        (BudgetRequest(layers=(9,), keep=(0.0,)), 9, False),
        (BudgetRequest(layers=(0,)), 0, True),
    ):
        schedule = dropped(measured, divergence, request)
        assert schedule.gates == (Gate(layer, 0),)
        assert schedule.calibration["exceeds_eta"] is exceeds


@given(st.integers(2, 80), st.floats(0, 0.999))
def test_nearest_layer(depth: int, compression: float) -> None:
    layer = _nearest(compression, depth)
    errors = [abs(1 - k / depth - compression) for k in range(1, depth)]
    assert 1 <= layer < depth and errors[layer - 1] == pytest.approx(min(errors))


def test_unmeasured_models_get_the_published_layer(measured: Any) -> None:
    for depth, layer in ((32, 15), (40, 19), (16, 8), (4, 2), (2, 1)):
        schedule = Method().calibrate(measured(depth), BudgetRequest())
        assert schedule.gates == (Gate(layer, 0),) and "nothing was measured" in schedule.calibration["note"]
        assert schedule.calibration["exceeds_eta"] is None


def test_all_tokens_for_a_test_of_the_wiring(measured: Any, site: Any, random_rows: Any) -> None:
    for keep in (1.0, 576.0):
        (gate,) = dropped(measured, [0.0] * 16, BudgetRequest(keep=(keep,), layers=(4,))).gates
        assert gate == Gate(4, 576)
    for keep, expected in ((6, list(range(6))), (0, [])):
        selector = Method.choose(site(Gate(4, keep), 6, (2, 3)))
        assert isinstance(selector, Fixed) and selector.reads == ()
        assert torch.equal(selector(random_rows(6, batch=2)), torch.tensor([expected] * 2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (BudgetRequest(keep=(0.5,)), "keep 0.5 does not fit vtw"),
        (BudgetRequest(keep=(1.0, 0.0)), "keep 1,0 does not fit vtw"),
        (BudgetRequest(layers=(2, 5)), "at one layer, not at 2"),
        (BudgetRequest(layers=()), "at one layer, not at 0"),
        (BudgetRequest(layers=(16,)), "outside the model"),
        (BudgetRequest(layers=(2,), compression=0.5), "both set the layer"),
        (BudgetRequest(keep=(0.0,), compression=0.5), "both set the budget"),
        (BudgetRequest(compression=1.0), "compression 1 must be"),
        (BudgetRequest(compression=-0.1), "compression -0.1 must be"),
        (BudgetRequest(compression=float("nan")), "compression nan must be"),
    ],
)
def test_refused_requests(request_: BudgetRequest, message: str, measured: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        dropped(measured, [0.0] * 16, request_)


def test_bad_options(measured: Any, site: Any) -> None:
    for options, message in (
        ({"eta": -0.1}, "eta -0.1"),
        ({"eta": float("inf")}, "eta inf"),
        ({"start": 0}, "start 0 must be at least 1"),
    ):
        with pytest.raises(BadSchedule, match=message):
            Method(**options)
    with pytest.raises(BadSchedule, match="start 16 is outside the model; its last layer is 15"):
        dropped(measured, [0.0] * 16, start=16)
    with pytest.raises(BadSchedule, match="0 or all 6 tokens, not 3"):
        Method.choose(site(Gate(4, 3), 6, (2, 3)))
