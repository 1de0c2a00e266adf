# SPDX-License-Identifier: Apache-2.0
"""Slots of the stride and the lattice: exactly k, evenly spread."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.stride import Method, latticed, strided
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed


@given(st.integers(1, 700), st.data())
def test_stride_takes_the_middles(tokens: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, tokens))
    got = strided(tokens, keep)
    assert list(got) == [math.floor((i + Fraction(1, 2)) * tokens / keep) for i in range(keep)]
    gaps = {b - a for a, b in zip(got, got[1:], strict=False)}
    assert gaps <= {tokens // keep, -(-tokens // keep)} and min(gaps, default=1) > 0
    assert 0 <= got[0] and got[-1] < tokens and abs(got[0] - (tokens - 1 - got[-1])) <= 1


@given(st.integers(1, 24), st.integers(1, 24), st.data())
def test_grid_is_exact_and_covers(height: int, width: int, data: st.DataObject) -> None:
    keep = data.draw(st.integers(1, height * width))
    got = latticed((height, width), keep)
    assert len(set(got)) == keep and all(0 <= slot < height * width for slot in got)
    if 2 <= min(height, width) and keep >= max(height, width) / min(height, width):
        points = [divmod(slot, width) for slot in got]
        reach = max(min(max(abs(y - a), abs(x - b)) for a, b in points) for y in range(height) for x in range(width))
        assert reach <= 1.5 * math.sqrt(height * width / keep) + 0.5


def test_grid_of_llava() -> None:
    assert sorted(latticed((24, 24), 144)) == [24 * y + x for y in range(1, 24, 2) for x in range(1, 24, 2)]
    assert sorted(latticed((24, 24), 64)) == [24 * y + x for y in range(1, 24, 3) for x in range(1, 24, 3)]
    assert sorted(latticed((2, 3), 6)) == [0, 1, 2, 3, 4, 5]
    even = set(latticed((24, 24), 121))
    assert even < set(latticed((24, 24), 130))  # 11 x 11, and nine more


def slots(method: Method, request: BudgetRequest, measured: Any, site: Any, grid: tuple[int, int]) -> list[list[int]]:
    tokens, out = grid[0] * grid[1], []
    for gate in method.calibrate(measured(16, grid), request).gates:
        selector = Method.choose(site(gate, tokens, grid))
        assert isinstance(selector, Fixed) and selector.reads == ()
        out.append(selector.slots.tolist())
        tokens = gate.keep
    return out


def test_before_the_decoder_by_default(measured: Any, site: Any) -> None:
    schedule = Method().calibrate(measured(32, (24, 24)), BudgetRequest())
    assert [(g.layer, g.keep, g.selector) for g in schedule.gates] == [(0, 144, {"pattern": "stride"})]
    assert slots(Method(), BudgetRequest(keep=(5,)), measured, site, (4, 5)) == [[2, 6, 10, 14, 18]]
    assert slots(Method(pattern="grid"), BudgetRequest(keep=(4,)), measured, site, (4, 6)) == [[7, 10, 19, 22]]


def test_later_gates_stride_over_the_kept_tokens(measured: Any, site: Any) -> None:
    got = slots(Method(), BudgetRequest(keep=(10, 5), layers=(3, 9)), measured, site, (4, 5))
    assert got == [list(range(1, 20, 2)), [1, 3, 5, 7, 9]]


def test_grid_needs_the_whole_grid(measured: Any, site: Any) -> None:
    method = Method(pattern="grid")
    assert len(slots(method, BudgetRequest(keep=(1.0, 5), layers=(3, 9)), measured, site, (4, 5))) == 2
    assert slots(method, BudgetRequest(keep=(5, 5, 0)), measured, site, (4, 5))[1:] == [[0, 1, 2, 3, 4], []]
    message = "pattern 'grid' needs all tokens of the 4 x 5 grid, not 10 of them; use one gate or pattern 'stride'"
    with pytest.raises(BadSchedule, match=message):
        method.calibrate(measured(16, (4, 5)), BudgetRequest(keep=(10, 5), layers=(3, 9)))
    with pytest.raises(BadSchedule, match=message):
        Method.choose(site(Gate(3, 5, selector={"pattern": "grid"}), 10, (4, 5)))


@pytest.mark.parametrize("pattern", ["stride", "grid"])
@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing(pattern: str, keep: int, site: Any, random_rows: Any) -> None:
    selector = Method.choose(site(Gate(0, keep, selector={"pattern": pattern}), 20, (4, 5)))
    assert torch.equal(selector(random_rows(20, batch=2)), torch.arange(keep).expand(2, -1))


def test_bad_options(site: Any) -> None:
    with pytest.raises(BadSchedule, match="pattern 'hex' is not known; use one of stride, grid"):
        Method(pattern="hex")  # type: ignore[arg-type]
    with pytest.raises(BadSchedule, match="selector of a stride gate: pattern.pattern is 3"):
        Method.choose(site(Gate(0, 7, selector={"pattern": 3}), 20, (4, 5)))
