# SPDX-License-Identifier: Apache-2.0
"""Token budgets."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.selection import budget as accounting
from secateur.selection.budget import (
    BudgetRequest,
    alive,
    budget,
    counts,
    counts_for,
    front,
    increasing,
    kept,
    plan,
    reachable,
    spread,
)

LLAVA_7B = Dimensions(32, 4096, 32, 32, 128, 11008, 32064, 4096, 1024)
LLAVA_13B = Dimensions(40, 5120, 40, 40, 128, 13824, 32064, 4096, 1024)
RELEASED = (Gate(3, 288), Gate(6, 144), Gate(14, 48))
SHAPE = (1 / 2, 1 / 4, 1 / 12)


def test_published_llava_figures() -> None:
    """0.85 TFLOPs and 128 tokens in Tables 1 and 2 of arXiv 2505.22038; 3.82 unpruned."""
    with_drop = budget(LLAVA_7B, 576, (*RELEASED, Gate(22, 0)))
    assert with_drop.average_tokens == 129.0
    assert round(with_drop.prefill_tflops, 3) == 0.847
    assert round(with_drop.compression, 3) == 0.776
    without = budget(LLAVA_7B, 576, RELEASED)
    assert without.average_tokens == 144.0
    assert round(without.prefill_tflops, 3) == 0.944
    assert without.compression == 0.75
    full = budget(LLAVA_7B, 576, ())
    assert round(full.prefill_tflops, 2) == 3.82
    assert (full.compression, full.prefill_flops_ratio) == (0.0, 1.0)
    scaled = (Gate(4, 288), Gate(8, 144), Gate(18, 48), Gate(28, 0))
    assert round(budget(LLAVA_13B, 576, scaled).prefill_tflops, 3) == 1.725


def test_bytes_of_the_cache() -> None:
    cost = budget(LLAVA_7B, 576, RELEASED)
    assert cost.kv_bytes[0] == 576 * 2 * 32 * 128 * 2
    assert cost.kv_bytes[31] == 48 * 2 * 32 * 128 * 2
    assert alive(32, 576, RELEASED) == (576,) * 3 + (288,) * 3 + (144,) * 8 + (48,) * 18


def test_names() -> None:
    assert accounting.schedule_name("btp", budget(LLAVA_7B, 576, (*RELEASED, Gate(22, 0)))) == "btp-22"
    assert accounting.schedule_name("btp", budget(LLAVA_7B, 576, RELEASED)) == "btp-25"


def test_counts_from_shares_and_counts() -> None:
    assert counts(SHAPE, 576) == (288, 144, 48)
    assert counts((1.0, 0.5, 30, 2), 145) == (145, 72, 30, 2)
    assert counts((0.5, 0.001, 0.0), 145) == (72, 1, 0)
    assert kept(0.5, 7) == 3


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ((0.5, 0.6), "keep 0.6 is 86 tokens of 72; kept counts must not grow"),
        ((145,), "keep 145 is 145 tokens of 144; the model has no more vision tokens"),
        ((2.5,), "keep 2.5 is neither a share"),
        ((-0.5,), "keep -0.5 must be at least 0"),
        ((math.nan,), "keep nan must be at least 0"),
    ],
)
def test_bad_counts(keep: tuple[float, ...], message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        counts(keep, 144)


@settings(max_examples=100)
@given(st.integers(2, 600), st.integers(2, 40), st.floats(0, 0.999), st.data())
def test_compression_is_met_as_closely_as_integers_allow(
    tokens: int, depth: int, compression: float, data: st.DataObject
) -> None:
    number = data.draw(st.integers(1, min(3, depth)))
    layers = sorted(data.draw(st.sets(st.integers(0, depth - 1), min_size=number, max_size=number)))
    shape = SHAPE[:number]
    if compression > reachable(layers[0], depth, tokens):
        with pytest.raises(BadSchedule, match="first gate at layer|out of reach"):
            counts_for(compression, layers, shape, depth, tokens)
        return

    def total(some: tuple[int, ...]) -> int:
        return sum(alive(depth, tokens, map(Gate, layers, some)))

    found = counts_for(compression, layers, shape, depth, tokens)
    assert all(1 <= n <= tokens for n in found)
    assert list(found) == sorted(found, reverse=True)
    error = abs(total(found) - (1 - compression) * depth * tokens)
    # No factor of a dense scan is nearer.
    factors = [f * tokens / 400 for f in range(1, 4800 // tokens + 12 * 400)][:: max(1, tokens // 40)]
    for factor in factors:
        other = tuple(min(kept(factor * share / tokens, tokens), tokens) for share in shape)
        assert error <= abs(total(other) - (1 - compression) * depth * tokens) + 1e-6


def test_compression_of_llava() -> None:
    assert counts_for(0.75, (3, 6, 14), SHAPE, 32, 576) == (288, 144, 48)
    assert counts_for(0.7760416667, (3, 6, 14), SHAPE, 32, 576, drop=22) == (288, 144, 48)
    assert counts_for(0.0, (3, 6, 14), SHAPE, 32, 576) == (576, 576, 576)


def test_the_message_of_an_unreachable_compression_has_the_latest_layer() -> None:
    with pytest.raises(BadSchedule) as caught:
        counts_for(0.89, (3, 6, 9), SHAPE, 16, 576)
    assert str(caught.value) == (
        "compression 0.89 needs a first gate at layer 1 or earlier (layer 3 of 16 allows at most 0.81); "
        "use --layers or a lower --compression"
    )
    with pytest.raises(BadSchedule, match="out of reach for 4 tokens"):
        counts_for(0.9, (3, 6, 9), SHAPE, 16, 4)
    with pytest.raises(BadSchedule, match="at least 0 and below 1"):
        counts_for(1.0, (3,), (0.5,), 16, 576)


def test_spread_and_increasing() -> None:
    assert spread((0.3, 0.9, 1.0), 3) == (0.3, 0.9, 1.0)
    assert spread((0.3, 0.9, 1.0), 1) == (0.3,)
    assert spread((0.3, 0.9, 1.0), 2) == (0.3, 1.0)
    assert spread((0.0, 1.0), 5) == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert increasing((0.75, 1.5, 3.5), 8) == (1, 2, 4)
    assert increasing((1, 1, 1), 4) == (1, 2, 3)
    assert increasing((9, 9), 4) == (2, 3)
    with pytest.raises(BadSchedule, match=r"3 gates do not fit a model of 3 layers \(at most 2\)"):
        increasing((1, 2, 3), 3)


def test_plan_moves_its_own_first_gate_only() -> None:
    own = plan(BudgetRequest(compression=0.89), 16, 576, (3, 6, 9), SHAPE)
    assert own.layers == (1, 6, 9) and own.moved == (3, 1)
    assert abs(budget_of(own.layers, own.counts, 16) - 0.89) < 0.002
    near = plan(BudgetRequest(compression=0.7), 16, 576, (3, 6, 9), SHAPE)
    assert near.layers == (3, 6, 9) and near.moved is None
    with pytest.raises(BadSchedule, match="needs a first gate at layer 1 or earlier"):
        plan(BudgetRequest(compression=0.89, layers=(3, 6, 9)), 16, 576, (3, 6, 9), SHAPE)
    with pytest.raises(BadSchedule, match="is out of reach for 576 tokens"):
        plan(BudgetRequest(compression=0.98), 16, 576, (3, 6, 9), SHAPE)


def test_higher_compression_never_keeps_too_few_at_the_first_gate() -> None:
    """The first gate keeps at least half of the method's share if it can move earlier."""
    for compression in np.arange(0.3, 0.93, 0.01):
        found = plan(BudgetRequest(compression=float(compression)), 16, 576, (3, 6, 9), SHAPE)
        assert found.layers[0] == 1 or found.counts[0] >= SHAPE[0] * 576 / 2
        assert abs(budget_of(found.layers, found.counts, 16) - compression) < 0.002


def budget_of(layers: tuple[int, ...], kept_tokens: tuple[int, ...], depth: int) -> float:
    return 1 - sum(alive(depth, 576, map(Gate, layers, kept_tokens))) / (depth * 576)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (BudgetRequest(keep=(0.5,), compression=0.5), "give one of them"),
        (BudgetRequest(keep=(0.5,), layers=(2, 4)), "--keep has 1 values for 2 layers"),
        (BudgetRequest(layers=()), "at least one value"),
        (BudgetRequest(layers=(4, 4)), "must increase"),
        (BudgetRequest(layers=(4, 16)), "outside the model"),
        (BudgetRequest(layers=(0, 4)), "must be at layer 1 or later"),
        (BudgetRequest(layers=(4, 12)), "must come after the last gate"),
    ],
)
def test_impossible_requests(request_: BudgetRequest, message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        plan(request_, 16, 576, (3, 6, 9), SHAPE, drop=11)


@pytest.mark.parametrize(
    ("request_", "keep"),
    [
        (BudgetRequest(), 144),
        (BudgetRequest(keep=(0.5,)), 288),
        (BudgetRequest(keep=(64,)), 64),
        (BudgetRequest(keep=(0.0,)), 0),
        (BudgetRequest(compression=8 / 9), 64),
        (BudgetRequest(compression=0.0), 576),
    ],
)
def test_front_counts(request_: BudgetRequest, keep: int) -> None:
    """One gate before the decoder keeps the average number of tokens."""
    assert front(request_, 32, 576, 0.25) == keep


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (BudgetRequest(layers=(3, 6)), "--layers 3,6 does not fit"),
        (BudgetRequest(keep=(0.5, 0.25)), "--keep has 2 values for a method with one gate"),
        (BudgetRequest(keep=()), "at least one value"),
        (BudgetRequest(keep=(0.5,), compression=0.5), "give one of them"),
        (BudgetRequest(compression=1.0), "below 1"),
    ],
)
def test_front_refusals(request_: BudgetRequest, message: str) -> None:
    with pytest.raises(BadSchedule, match=message):
        front(request_, 32, 576, 0.25)
