# SPDX-License-Identifier: Apache-2.0
"""Grids chosen by the downsampling baseline, against a plain search."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.downsample import Method, nearest_grid
from secateur.selection.budget import BudgetRequest


@given(st.integers(1, 26), st.integers(1, 26), st.data())
def test_no_allowed_grid_is_nearer(height: int, width: int, data: st.DataObject) -> None:
    wanted = data.draw(st.integers(1, height * width))
    rows, columns = nearest_grid(wanted, (height, width))
    assert 1 <= rows <= height and 1 <= columns <= width

    def skew(r: int, c: int) -> float:
        vertical, horizontal = r / height, c / width
        return max(vertical / horizontal, horizontal / vertical)

    assert skew(rows, columns) <= 1.5 + 1e-9
    for r in range(1, height + 1):
        for c in range(1, width + 1):
            if skew(r, c) <= 1.5 - 1e-9:
                miss, ours = abs(r * c - wanted), abs(rows * columns - wanted)
                assert (miss, skew(r, c) + 1e-6) > (ours, skew(rows, columns))


@pytest.mark.parametrize(
    ("wanted", "grid"),
    [(576, (24, 24)), (144, (12, 12)), (64, (8, 8)), (192, (16, 12)), (128, (13, 10)), (1, (1, 1)), (2, (1, 1))],
)
def test_grids_of_llava(wanted: int, grid: tuple[int, int]) -> None:
    assert nearest_grid(wanted, (24, 24)) == grid


@pytest.mark.parametrize(
    ("asked", "grid"),
    [
        (BudgetRequest(), (6, 6)),
        (BudgetRequest(keep=(1.0,)), (12, 12)),
        (BudgetRequest(keep=(30,)), (6, 5)),
        (BudgetRequest(compression=0.5), (9, 8)),
        (BudgetRequest(compression=0.0), (12, 12)),
    ],
)
def test_schedule(asked: BudgetRequest, grid: tuple[int, int], measured: Any) -> None:
    schedule = Method().calibrate(measured(16, (12, 12)), asked)
    assert schedule.gates == (Gate(0, grid[0] * grid[1], "downsample", {"grid": list(grid)}),)
    assert schedule.budget.average_tokens == grid[0] * grid[1]


def test_refusals(measured: Any, site: Any) -> None:
    with pytest.raises(BadSchedule, match="keep 0 leaves no image"):
        Method().calibrate(measured(), BudgetRequest(keep=(0.0,)))
    with pytest.raises(BadSchedule, match="--layers 4 does not fit"):
        Method().calibrate(measured(), BudgetRequest(layers=(4,)))
    with pytest.raises(BadSchedule, match="chooses no tokens; its kind must be 'downsample', not 'vision'"):
        Method.choose(site(Gate(0, 4, "vision"), 20, (4, 5)))
