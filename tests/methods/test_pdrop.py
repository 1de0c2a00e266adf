# SPDX-License-Identifier: Apache-2.0
"""PyramidDrop: three stages, each scored by the layer after it; scores are tested in selection/test_attention.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.pdrop import Method
from secateur.selection.attention import Attended
from secateur.selection.budget import BudgetRequest

LLAVA = (32, (24, 24))


def test_published_defaults_one_layer_later(measured: Any) -> None:
    """The published cuts at layers 8, 16 and 24 average 270 tokens; ours come one layer later."""
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest())
    assert [(g.layer, g.keep) for g in schedule.gates] == [(9, 288), (17, 144), (25, 72)]
    assert schedule.budget.average_tokens == 270 + (288 + 144 + 72) / 32
    published = Method().calibrate(measured(*LLAVA), BudgetRequest(layers=(8, 16, 24)))
    assert published.budget.average_tokens == 270


@pytest.mark.parametrize(("depth", "layers"), [(4, [1, 2, 3]), (16, [5, 9, 13]), (28, [8, 15, 22]), (40, [11, 21, 31])])
def test_stages_scale_with_depth(depth: int, layers: list[int], measured: Any) -> None:
    assert [g.layer for g in Method().calibrate(measured(depth), BudgetRequest()).gates] == layers


def test_too_few_layers_for_three_stages(measured: Any) -> None:
    with pytest.raises(BadSchedule, match="3 gates do not fit a model of 2 layers"):
        Method().calibrate(measured(2), BudgetRequest())
    assert len(Method().calibrate(measured(2), BudgetRequest(layers=(1,))).gates) == 1


def test_ratio_is_the_share_of_each_stage(measured: Any) -> None:
    def keeps(ratio: float, request: BudgetRequest) -> list[int]:
        return [g.keep for g in Method(ratio=ratio).calibrate(measured(*LLAVA), request).gates]

    assert keeps(0.25, BudgetRequest()) == [144, 36, 9]
    assert keeps(0.5, BudgetRequest(layers=(4, 8, 16, 24))) == [288, 144, 72, 36]
    assert keeps(0.5, BudgetRequest(layers=(4,))) == [288]


def test_compression_keeps_the_shape(measured: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest(compression=1 - 192 / 576))
    assert schedule.budget.average_tokens == pytest.approx(192, abs=1)
    first, second, third = (g.keep for g in schedule.gates)
    assert abs(first - 2 * second) <= 1 and abs(second - 2 * third) <= 1


def test_positions_follow_the_flag(measured: Any) -> None:
    assert Method().calibrate(measured(), BudgetRequest()).positions == "original"
    assert Method(positions="compact").calibrate(measured(), BudgetRequest()).positions == "compact"


def test_score_is_the_last_row_of_the_layer_before(site: Any) -> None:
    selector = Method.choose(site(Gate(9, 7), 20, (4, 5)))
    assert isinstance(selector, Attended) and selector.reads == ("query", "key")


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing_reads_nothing(keep: int, site: Any, random_rows: Any) -> None:
    selector = Method.choose(site(Gate(9, keep), 20, (4, 5)))
    assert selector.reads == ()
    assert torch.equal(selector(random_rows(20, batch=2)), torch.arange(keep).expand(2, -1))


def test_bad_options(site: Any) -> None:
    for ratio in (0, 1, float("nan")):
        with pytest.raises(BadSchedule, match=f"ratio {ratio:g} must be above 0 and below 1"):
            Method(ratio=ratio)
    with pytest.raises(BadSchedule, match="selector of a pdrop gate: unknown constant 'ratio'; leave it out"):
        Method.choose(site(Gate(9, 7, selector={"ratio": 0.5}), 20, (4, 5)))
