# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from secateur.bundle.layout import Layout, View
from secateur.calibration.capture import sizes_of_views
from secateur.errors import BadSchedule
from secateur.selection.budget import BudgetRequest
from tests.conftest import method, schedules, tiny_family


@pytest.mark.parametrize(("name", "images", "views"), [("llava_next", 1, 5), ("llava_onevision", 2, 2)])
def test_an_image_of_several_views_is_not_made_smaller(name: str, images: int, views: int) -> None:
    """For tiles of many tokens each, and for one view of many tokens plus a line break."""
    family = tiny_family(name).at(images=images)
    with pytest.raises(BadSchedule, match=f"a smaller image needs one grid, not {views} views; use another method"):
        schedules(family, {"downsample": method("downsample")}, BudgetRequest(compression=0.5))


def test_a_view_of_one_token_stays_as_long_as_any() -> None:
    family = tiny_family("llava_onevision").at(images=2)
    made = schedules(family, {"btp": method("btp"), "vtw": method("vtw")}, BudgetRequest(compression=0.5))
    single = [number for number, view in enumerate(family.layout.views) if view.tokens == 1]
    assert len(single) == 2
    for schedule in made:
        for gate in schedule.gates:
            assert {gate.parts[number].keep for number in single} == {int(gate.keep > 0)}


def test_views_of_one_size_are_alike() -> None:
    small, large, single = View(1, 4, (2, 2)), View(6, 6, (2, 3)), View(13, 1, (1, 1))
    other = View(15, 4, (2, 2))
    assert sizes_of_views(Layout((9,) * 4, (small, large, single, other))) == [[small, other], [large]]
    assert sizes_of_views(Layout((9,) * 13, (single,))) == [[single]]  # there is no other
