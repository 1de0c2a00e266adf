# SPDX-License-Identifier: Apache-2.0
"""FitPrune's schedule and score against plain loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.fitprune import Method, ProductSelector, from_table, levels, lost, merge, search, staircase
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed, GateInputs
from tests.model_fixtures.gates import START

LAYERS, GRID = 16, (4, 5)
TABLE = (14, 33, 89, 36, 40, 30, 20, 25, 30, 40, 25, 20, 40, 30, 20, 10)  # of 576; it begins as the published one


def mass(seed: int, layers: int = 5, samples: int = 3, tokens: int = 6) -> NDArray[np.float32]:
    """Return small integers above 0, so that ranks tie."""
    return np.random.default_rng(seed).integers(1, 6, (layers, samples, tokens)).astype(np.float32)


def oracle_score(rows: GateInputs, tokens: int) -> NDArray[np.float64]:
    query, key = (rows.read[name].numpy().astype(np.float64) for name in ("queries", "key"))
    count, batch, heads, width = query.shape
    group = heads // key.shape[2]
    mask = rows.attention_mask.numpy()
    score = np.zeros((batch, tokens))
    for b in range(batch):
        cross, own = np.zeros(tokens), np.zeros(tokens)
        for row in range(START, count):
            if not mask[b, row]:
                continue
            largest = np.zeros(count)
            for head in range(heads):
                seen = [column for column in range(row + 1) if mask[b, column]]
                logits = np.array([query[row, b, head] @ key[c, b, head // group] for c in seen]) / np.sqrt(width)
                shares = np.exp(logits - logits.max())
                largest[seen] = np.maximum(largest[seen], shares / shares.sum())
            if row < START + tokens:
                own += largest[START : START + tokens]
            else:
                cross += largest[START : START + tokens]
        score[b] = cross * own
    return score


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_score_and_slots(seed: int, whole: bool, site: Any, random_rows: Any) -> None:
    tokens, keep = 20, 7
    rows = random_rows(tokens, batch=3, seed=seed, whole=whole)
    selector = Method.choose(site(Gate(2, keep), tokens, GRID))
    assert isinstance(selector, ProductSelector)
    score = selector.score(rows)
    np.testing.assert_allclose(score.numpy(), oracle_score(rows, tokens), rtol=1e-4)
    kept = [sorted(np.argsort(-row, kind="stable")[:keep].tolist()) for row in score.numpy()]
    assert selector(rows).tolist() == kept


def test_equal_scores_keep_the_lower_index(site: Any, random_rows: Any) -> None:
    """With equal keys all tokens get equal attention from the text, and later ones less from the image."""
    rows = random_rows(20, batch=1)
    rows.read["key"][:] = 0
    slots = Method.choose(site(Gate(2, 7), 20, GRID))(rows)
    assert slots.tolist() == [list(range(7))]


def test_padding_and_half_precision_change_nothing(site: Any, random_rows: Any) -> None:
    rows = random_rows(20, whole=False)
    selector = Method.choose(site(Gate(2, 7), 20, GRID))
    assert isinstance(selector, ProductSelector)
    expected = selector.score(rows)
    for name in selector.reads:
        rows.read[name][-1, -1] = 100.0  # the last row of the last sample is padding
    assert torch.equal(selector.score(rows), expected)
    half = rows._replace(read={name: rows.read[name].half() for name in selector.reads})
    whole = rows._replace(read={name: rows.read[name].half().float() for name in selector.reads})
    assert half.read["key"].dtype == torch.float16 and selector.score(half).dtype == torch.float32
    assert torch.equal(selector.score(half), selector.score(whole))


@pytest.mark.parametrize("seed", range(5))
def test_lost_attention_against_loops(seed: int) -> None:
    cross, own = mass(seed).astype(np.float64), mass(seed + 100).astype(np.float64)
    found = lost(cross.astype(np.float32), own.astype(np.float32))
    layers, samples, tokens = cross.shape
    for layer in range(layers):
        for count in range(1, tokens + 1):
            shares = np.zeros(2)
            for i in range(samples):
                product = [cross[layer, i, t] * own[layer, i, t] for t in range(tokens)]
                kept = sorted(range(tokens), key=lambda t: (-product[t], t))[:count]
                shares += [m[layer, i, kept].sum() / m[layer, i].sum() / samples for m in (cross, own)]
            assert found[layer, count - 1] == pytest.approx(1 - shares.min(), abs=1e-12)
    silent = lost(np.zeros(cross.shape, np.float32), own.astype(np.float32))
    assert np.isfinite(silent).all()


@given(st.integers(0, 1000), st.floats(0, 6))
def test_search_equals_trying_every_alpha(seed: int, average: float) -> None:
    losses = lost(mass(seed), mass(seed + 1))
    layers, tokens = losses.shape

    def plain(alpha: float) -> list[int]:
        steps = [tokens]
        for layer in range(layers - 1):
            needed = next(n for n in range(1, tokens + 1) if losses[layer, n - 1] <= alpha)
            steps.append(min(needed, steps[-1]))
        return steps

    tried = [plain(alpha) for alpha in sorted({0.0, *losses.reshape(-1).tolist()})]
    alpha, steps = search(losses, average)
    assert list(steps) == plain(alpha) == list(staircase(losses, alpha))
    nearest = min(abs(sum(steps) / layers - average) for steps in tried)
    assert abs(sum(steps) / layers - average) == pytest.approx(nearest)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=7), st.integers(1, 4))
def test_merge_is_the_best_of_all_cuts(drops: list[int], cuts: int) -> None:
    tokens = 100
    steps = [tokens - sum(drops[:i]) for i in range(len(drops) + 1)]

    def deviation(chosen: tuple[int, ...]) -> float:
        ends = [*chosen[1:], len(steps)]
        total = float(sum((tokens - step) ** 2 for step in steps[: chosen[0]]))
        for start, end in zip(chosen, ends, strict=True):
            mean = sum(steps[start:end]) / (end - start)
            total += sum((step - mean) ** 2 for step in steps[start:end])
        return total

    every = [c for n in range(1, cuts + 1) for c in combinations(range(1, len(steps)), n)]
    found = merge(steps, cuts)
    best = min(deviation(chosen) for chosen in every)
    assert found in every and deviation(found) == pytest.approx(best)
    assert len(found) == min(len(c) for c in every if deviation(c) == pytest.approx(best))
    assert list(levels(steps, found)) == sorted(levels(steps, found), reverse=True)


def test_merge_of_simple_staircases() -> None:
    assert merge([9, 9, 6, 6, 6, 2, 2], 3) == (2, 5)
    assert merge([9, 9, 6, 6, 6, 2, 2], 1) == (2,)  # 19.2 against 27 of a cut at 5
    assert merge([9, 9, 9], 2) == (1,)
    assert levels([9, 9, 6, 6, 6, 2, 2], (2, 5)) == (6.0, 2.0)


def test_table_becomes_a_schedule(measured: Any) -> None:
    """The published count of layer l is a gate at layer l + 1, the first without the deleted tokens."""
    assert from_table((2, 0, 5, 1), 10) == (10, 8, 8, 3)
    assert from_table((2, 8, 0), 10) == (10, 8, 1)
    schedule = Method(table=TABLE).calibrate(measured(LAYERS, (24, 24), [0.0] * LAYERS), BudgetRequest())
    report = schedule.calibration
    steps = from_table(TABLE, 576)
    assert report["counts_from"] == "table" and report["staircase"] == list(steps)
    assert steps[:5] == (576, 562, 529, 440, 404)
    assert report["average_staircase"] == pytest.approx(sum(steps) / LAYERS, abs=1e-3)
    assert len(schedule.gates) == 3 and report["average_merged"] > report["average_staircase"]
    assert schedule.budget.average_tokens == pytest.approx(sum(steps) / LAYERS, abs=0.5)
    every = Method(table=TABLE, gates=15).calibrate(measured(LAYERS, (24, 24)), BudgetRequest())
    assert tuple(gate.keep for gate in every.gates) == steps[1:]
    assert [gate.layer for gate in every.gates] == list(range(1, LAYERS))
    asked = Method(table=TABLE).calibrate(measured(LAYERS, (24, 24)), BudgetRequest(compression=0.78))
    assert asked.budget.compression == pytest.approx(0.78, abs=1e-3)


@pytest.mark.parametrize("compression", [0.3, 0.67, 0.78, 0.89])
@pytest.mark.parametrize("gates", [1, 3, 5])
def test_budget_is_met(compression: float, gates: int, measured: Any) -> None:
    statistics = measured(LAYERS, (12, 12), [0.0] * LAYERS)
    schedule = Method(gates=gates).calibrate(statistics, BudgetRequest(compression=compression))
    # The last token of one gate counts in every layer after it.
    assert schedule.budget.compression == pytest.approx(compression, abs=1 / 144)
    assert 1 <= len(schedule.gates) <= gates and all(gate.layer >= 1 and gate.keep >= 1 for gate in schedule.gates)
    report = schedule.calibration
    found = search(lost(statistics.cross_attention, statistics.self_attention), (1 - compression) * 144)
    assert report["counts_from"] == "search"
    assert (report["alpha"], tuple(report["staircase"])) == (pytest.approx(found[0], abs=1e-6), found[1])


def test_keep_and_layers_are_respected(measured: Any) -> None:
    statistics = measured(LAYERS, GRID, [0.0] * LAYERS)
    for request, expected in (
        (BudgetRequest(keep=(0.5,), layers=(5,)), [(5, 10)]),
        (BudgetRequest(keep=(0.5, 0.0), layers=(2, 9)), [(2, 10), (9, 0)]),
        (BudgetRequest(keep=(1.0,), layers=(1,)), [(1, 20)]),
    ):
        assert [(gate.layer, gate.keep) for gate in Method().calibrate(statistics, request).gates] == expected
    placed = Method().calibrate(statistics, BudgetRequest(layers=(2, 6), compression=0.5))
    assert [gate.layer for gate in placed.gates] == [2, 6]
    assert placed.budget.compression == pytest.approx(0.5, abs=0.02)
    kept = Method().calibrate(statistics, BudgetRequest(keep=(1.0, 0.5, 3, 2)))
    assert [gate.keep for gate in kept.gates] == [20, 10, 3, 2]


def test_unmeasured_models_get_an_even_staircase(measured: Any) -> None:
    schedule = Method().calibrate(measured(32, (24, 24)), BudgetRequest())
    assert schedule.budget.compression == pytest.approx(0.6, abs=1e-3)
    assert "nothing was measured" in schedule.calibration["note"]


def test_the_attention_sets_the_cut(measured: Any) -> None:
    """The cut is after the first layer with all attention on one token."""
    statistics = measured(8, (1, 10), [0.0] * 8)
    even = np.ones((8, 8, 10), np.float32)
    peaked = even.copy()
    peaked[4:] = 1e-4
    peaked[4:, :, 7] = 1
    schedule = Method().calibrate(
        replace(statistics, cross_attention=peaked, self_attention=peaked), BudgetRequest(compression=0.3375)
    )
    # Layers 0 to 3 need all ten tokens, the rest one: 5 x 10 + 3 x 1 = 53 of 80.
    assert schedule.calibration["staircase"] == [10] * 5 + [1] * 3
    assert [(gate.layer, gate.keep) for gate in schedule.gates] == [(5, 1)]


def test_bad_options(measured: Any, site: Any) -> None:
    for options, message in (({"gates": 0}, "gates 0 must be"), ({"table": (3, -1)}, "table deletes -1")):
        with pytest.raises(BadSchedule, match=message):
            Method(**options)
    for table, message in (((1, 2), "2 values for 16 layers"), ((30,) * 16, "480 of 20 tokens")):
        with pytest.raises(BadSchedule, match=message):
            Method(table=table).calibrate(measured(LAYERS, GRID), BudgetRequest())
    for request, message in (
        (BudgetRequest(layers=(0,)), "must be at layer 1 or later"),
        (BudgetRequest(layers=(5, 5)), "must increase"),
        (BudgetRequest(layers=(16,)), "outside the model"),
        (BudgetRequest(keep=(0.5,), layers=(2, 5)), "1 values for 2 layers"),
        (BudgetRequest(keep=(0.5,), compression=0.5), "both set the budget"),
        (BudgetRequest(compression=0.99), "compression 0.99"),
        (BudgetRequest(compression=1.5), "compression 1.5 must be"),
    ):
        with pytest.raises(BadSchedule, match=message):
            Method().calibrate(measured(LAYERS, GRID, [0.0] * LAYERS), request)
    with pytest.raises(BadSchedule, match="selector of a fitprune gate: unknown constant 'alpha'; leave it out"):
        Method.choose(site(Gate(2, 3, selector={"alpha": 1}), 20, GRID))
    with pytest.raises(BadSchedule, match="at layer 1 or later"):
        Method.choose(site(Gate(0, 3), 20, GRID))
    assert isinstance(Method.choose(site(Gate(0, 20), 20, GRID)), Fixed)
