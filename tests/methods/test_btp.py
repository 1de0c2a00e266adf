# SPDX-License-Identifier: Apache-2.0
"""BTP schedules from statistics and a request, and the rule that finds the layers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.strict_json import to_json
from secateur.errors import BadSchedule
from secateur.methods.btp import Method, changed, scaled_drop, scaled_layers, stages, tuned_tau
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed
from secateur.selection.statistics import Statistics

CHANGE = [0, 0, 0, 0, 0.1, 0.4, 0.6, 0.3, 0.2, 0.25, 0.1, 0.02, 0, 0, 0, 0.9]
SIXTEEN = (12, 12)
# Through the published points of arXiv 2505.22038, Table 8 (0, 0, 325, 141, 155, 45, 1 of 576 at layers 1, 5, 9, ...).
LLAVA = [0.0] * 6 + [0.1, 0.25, 0.4, 325 / 576, 0.5, 0.4, 0.3, 141 / 576, 0.26, 0.265, 0.267, 155 / 576]
LLAVA += [0.22, 0.16, 0.11, 45 / 576, 0.04, 0.02, 0.01, 1 / 576, 0, 0, 0, 0, 0.01, 0.6]


def test_calibrated_schedule_and_its_report(measured: Any) -> None:
    schedule = Method().calibrate(measured(16, SIXTEEN, CHANGE), BudgetRequest())
    assert [(gate.layer, gate.keep) for gate in schedule.gates] == [(2, 72), (4, 36), (9, 12)]
    report = schedule.calibration
    assert report["layers"] == [2, 4, 9] and report["layers_from"] == "calibration"
    assert report["layers_calibrated"] == [2, 4, 9, 11] and report["layers_scaled"] == [2, 3, 7, 11]
    assert (report["tau"], report["epsilon"], report["onset"], report["peak"]) == (0.93, 0.05, 4, 6)
    assert report["similarity_below_tau"] == pytest.approx(CHANGE, abs=1e-3)
    assert report["attention_to_vision"] == [0.25] * 16
    assert report["samples"] == 8 and report["moved"] is None and report["note"] == ""
    assert json.loads(to_json(schedule))["calibration"] == report


def test_tau_is_retuned_unless_given(measured: Any) -> None:
    quiet = measured(16, SIXTEEN, [share / 6 for share in CHANGE])
    report = Method().calibrate(quiet, BudgetRequest()).calibration
    assert report["tau"] != 0.93
    fixed = Method(tau=0.93).calibrate(quiet, BudgetRequest()).calibration
    assert fixed["tau"] == 0.93 and max(fixed["similarity_below_tau"][:-1]) == pytest.approx(0.1, abs=1e-3)


def test_without_samples_layers_are_scaled(measured: Any) -> None:
    schedule = Method().calibrate(measured(32, (24, 24)), BudgetRequest())
    assert [(gate.layer, gate.keep) for gate in schedule.gates] == [(3, 288), (6, 144), (14, 48)]
    assert schedule.name == "btp-25"
    assert schedule.calibration["layers_from"] == "depth"
    assert "nothing was measured" in schedule.calibration["note"]
    parity = Method(final_drop=True).calibrate(measured(32, (24, 24)), BudgetRequest())
    assert parity.gates[-1].layer == 22 and parity.gates[-1].keep == 0
    assert parity.name == "btp-22" and parity.budget.average_tokens == 129.0


@pytest.mark.parametrize("depth", [3, 4, 8])
def test_shallow_models(depth: int, measured: Any) -> None:
    schedule = Method().calibrate(measured(depth, (3, 3), [0.5] * depth), BudgetRequest())
    layers = [gate.layer for gate in schedule.gates]
    assert layers == sorted(set(layers)) and 1 <= layers[0] and layers[-1] < depth
    assert schedule.calibration["layers_from"] == "depth" and schedule.calibration["note"]


def test_released_constants(measured: Any) -> None:
    gates = Method().calibrate(measured(32, (24, 24)), BudgetRequest()).gates
    names = ("merge", "attention", "over", "early", "spatial", "pattern", "diversity", "fills")
    assert [tuple(gate.selector[name] for name in names) for gate in gates] == [
        ("union", 86, 318, 288, 144, "manhattan", 86, 64),
        ("union", 129, 193, 144, 0, "off", 14, 15),
        ("union", 48, 57, 48, 0, "off", 0, 0),
    ]


def of_family(statistics: Statistics, family: str) -> Statistics:
    return replace(statistics, model=replace(statistics.model, family=family))


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_released_constants_of_qwen(family: str, measured: Any) -> None:
    """Those of the authors' Qwen2.5-VL file: int(0.12 k) and int(0.4 k) tokens by softmax, then picks far from them."""
    schedule = Method().calibrate(of_family(measured(28, (32, 32)), family), BudgetRequest())
    assert [(gate.layer, gate.keep) for gate in schedule.gates] == [(3, 512), (6, 256), (15, 128)]
    names = ("merge", "score", "attention", "over", "early", "spatial", "pattern", "diversity", "fills")
    assert [tuple(gate.selector[name] for name in names) for gate in schedule.gates] == [
        ("disjoint", "softmax", 61, 61, 512, 0, "off", 451, 0),
        ("disjoint", "softmax", 102, 102, 256, 0, "off", 154, 0),
        ("disjoint", "softmax", 128, 153, 128, 0, "off", 0, 0),
    ]
    assert schedule.calibration["preset"] == "released, Qwen2.5-VL"
    assert schedule.calibration["layers_scaled"] == [3, 6, 15, 22]
    parity = Method(final_drop=True).calibrate(of_family(measured(28, (32, 32)), family), BudgetRequest())
    assert (parity.gates[-1].layer, parity.gates[-1].keep) == (22, 0)


def test_options_override_the_preset_of_the_family(measured: Any) -> None:
    qwen = of_family(measured(28, (32, 32)), "qwen2_5_vl")
    options = Method(score="logits", attention=(0.5,), over=(2.0,), spatial="lattice")
    gate = options.calibrate(qwen, BudgetRequest()).gates[0]
    names = ("score", "attention", "over", "spatial", "pattern", "diversity")
    assert tuple(gate.selector[name] for name in names) == ("logits", 256, 512, 256, "lattice", 0)
    assert Method(score="logits", query="text").calibrate(qwen, BudgetRequest()).gates[0].selector["query"] == "text"
    with pytest.raises(BadSchedule, match="exact for logits only; use --score logits"):
        Method(query="text").calibrate(qwen, BudgetRequest())
    with pytest.raises(BadSchedule, match="fills 8 changes nothing for Qwen2.5-VL"):
        Method(fills=8).calibrate(qwen, BudgetRequest())


@pytest.mark.parametrize("family", ["llava", "internvl", "a_family_of_tomorrow"])
def test_other_families_get_the_constants_of_llava(family: str, measured: Any) -> None:
    known, other = (of_family(measured(32, (24, 24)), name) for name in ("llava", family))
    assert Method().calibrate(other, BudgetRequest()).gates == Method().calibrate(known, BudgetRequest()).gates
    assert Method().calibrate(other, BudgetRequest()).calibration["preset"] == "released, LLaVA-1.5"


@pytest.mark.parametrize(
    ("family", "shares"),
    [("llava", (0.6, 0.8, 1.0)), ("llava_next", (0.4, 0.7, 1.0)), ("qwen2_5_vl", (0.2, 0.65, 1.0))],
)
def test_lambdas_of_the_family(family: str, shares: tuple[float, ...], measured: Any) -> None:
    """Table 7 of the paper. It has four values for Qwen, which are interpolated for three gates."""
    statistics = of_family(measured(28, (20, 20)), family)
    gates = Method(preset="paper").calibrate(statistics, BudgetRequest(keep=(200, 100, 40))).gates
    assert [gate.selector["attention"] / gate.keep for gate in gates] == pytest.approx(shares)


def test_paper_constants_and_lambda(measured: Any) -> None:
    gates = Method(preset="paper").calibrate(measured(32, (24, 24)), BudgetRequest()).gates
    names = ("merge", "attention", "over", "early", "spatial", "diversity")
    assert [tuple(gate.selector[name] for name in names) for gate in gates] == [
        ("disjoint", 173, 576, 288, 0, 115),
        ("disjoint", 115, 172, 144, 0, 29),
        ("disjoint", 48, 57, 72, 0, 0),
    ]
    qwen = Method(preset="paper", lambdas=(0.12, 0.4, 1.0), over=(1.0, 1.0, 1.2), score="softmax")
    first = qwen.calibrate(measured(28, (32, 32)), BudgetRequest(keep=(0.5, 0.25, 0.125))).gates[0]
    assert (first.keep, first.selector["attention"], first.selector["over"]) == (512, 61, 61)


def test_gates_that_keep_all_or_none_have_no_constants(measured: Any, site: Any) -> None:
    schedule = Method().calibrate(measured(16, (4, 5)), BudgetRequest(keep=(1.0, 0.5, 0.0)))
    assert [bool(gate.selector) for gate in schedule.gates] == [False, True, False]
    for gate, tokens in zip(schedule.gates[::2], (20, 10), strict=True):
        selector = Method.choose(site(gate, tokens, (4, 5)))
        assert isinstance(selector, Fixed) and not selector.reads


def test_compression_moves_the_first_gate_and_records_it(measured: Any) -> None:
    statistics = measured(16, SIXTEEN, CHANGE)
    schedule = Method().calibrate(statistics, BudgetRequest(compression=0.89))
    assert [gate.layer for gate in schedule.gates] == [1, 4, 9]
    assert schedule.calibration["moved"] == [2, 1]
    assert schedule.name == "btp-11" and schedule.budget.compression == pytest.approx(0.89, abs=0.005)
    with pytest.raises(BadSchedule, match="needs a first gate at layer 1 or earlier"):
        Method().calibrate(statistics, BudgetRequest(compression=0.89, layers=(2, 4, 9)))


def test_final_drop_that_does_not_fit(measured: Any) -> None:
    with pytest.raises(BadSchedule, match="must come after the last gate at layer 12"):
        Method(final_drop=True).calibrate(measured(16, SIXTEEN, CHANGE), BudgetRequest(layers=(2, 12)))
    with pytest.raises(BadSchedule, match="no layer is left for a final drop after layer 3 of 4"):
        Method(final_drop=True).calibrate(measured(4, (3, 3)), BudgetRequest())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 1.5}, "tau 1.5 must be above 0 and below 1"),
        ({"epsilon": -0.1}, "epsilon -0.1"),
        ({"attention": (0.3, 1.2)}, "attention"),
        ({"attention": (0.3,), "preset": "paper"}, "use lambdas"),
        ({"lambdas": (0.3,)}, "use attention"),
        ({"over": (0.5,)}, "over"),
        ({"fills": -1}, "fills -1"),
        ({"fills": 8, "preset": "paper"}, "fills 8 changes nothing with the preset 'paper'"),
        ({"query": "text", "score": "softmax"}, "exact for logits only"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method(**options)


def test_llava_curve_gives_the_released_layers() -> None:
    found = stages(LLAVA, 0.05)
    assert (found.onset, found.peak) == (6, 9)
    assert found.layers == (3, 6, 14)
    assert found.drop == 22


def test_a_monotone_fall_ends_where_the_change_ends() -> None:
    found = stages([0, 0, 0, 0.1, 0.6, 0.4, 0.2, 0.04, 0.03, 0.02, 0.01, 0.9], 0.05)
    assert found.layers == (2, 4, 8) and found.drop == 9


def test_early_onset_keeps_two_layers_apart() -> None:
    found = stages([0.4, 0.5, 0.3, 0.2, 0.1, 0.3, 0.2, 0.5], 0.05)
    assert found.layers == (2, 4, 5) and found.drop is None


def test_curves_without_layers_give_a_reason() -> None:
    assert "no layer changes more than 0.05" in stages([0.01] * 8, 0.05).problem
    assert "does not fall to a low" in stages([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.05).problem
    assert "layers (2, 4, 3)" in stages([0.6, 0.5, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1], 0.05).problem


@given(st.lists(st.sampled_from([0, 0.02, 0.1, 0.3, 0.3, 0.6]), min_size=2, max_size=40))
def test_layers_always_increase_within_the_model(change: list[float]) -> None:
    found = stages(change, 0.05)
    assert bool(found.layers) != bool(found.problem)
    chain = (0, *found.layers, *([] if found.drop is None else [found.drop]))
    assert list(chain) == sorted(set(chain)) and chain[-1] < len(change)
    if found.drop is not None:
        assert max(change[found.drop : -1]) <= 0.05


def test_scaled_layers() -> None:
    assert [(*scaled_layers(depth), scaled_drop(depth, 0)) for depth in (32, 40, 28, 16, 8)] == [
        (3, 6, 14, 22),
        (4, 8, 18, 28),
        (3, 5, 12, 19),
        (2, 3, 7, 11),
        (1, 2, 4, 6),
    ]
    assert scaled_layers(4) == (1, 2, 3) and scaled_drop(4, 3) is None
    assert scaled_layers(3) == (1, 2)


def test_tau_is_tuned_to_a_useful_share() -> None:
    rng = np.random.default_rng(0)
    similarity = (1 - rng.random((6, 4, 50)) * 0.02).astype(np.float32)  # at 0.93 nothing has changed
    similarity[-1] = 0.2  # the last layer always changes
    assert max(changed(similarity, 0.93)[:-1]) == 0
    tau = tuned_tau(similarity)
    assert max(changed(similarity, tau)[:-1]) == pytest.approx(0.5, abs=0.03)
    step = np.where(np.arange(200).reshape(1, 4, 50) < 160, 0.5, 1.0).astype(np.float32).repeat(3, 0)
    assert max(changed(step, tuned_tau(step))[:-1]) == 0.8  # the only share there is above 0
