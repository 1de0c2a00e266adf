# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from secateur.bundle.layout import Layout, View
from secateur.bundle.manifest import Bucket
from secateur.bundle.schedule import KINDS
from secateur.evaluation.gates import IN_FRONT, no_grid, no_pictures, place, shown_gates


def test_gates_shown() -> None:
    assert shown_gates(0) == [] and shown_gates(3) == [0, 1, 2]
    assert shown_gates(4) == [0, 1, 3] and shown_gates(16) == [0, 7, 15]


def test_only_gates_in_the_decoder_have_a_layer() -> None:
    assert place("prune", 4) == place("route", 4) == "layer 4"
    assert place("vision", 0) == "encoder" and place("downsample", 0) == "smaller image"
    assert set(IN_FRONT) < set(KINDS)


def test_pictures_need_one_grid() -> None:
    view = View(1, 4, (2, 2))
    one, two = Layout((1,), (view,)), Layout((1,), (view, View(5, 4, (2, 2))))
    assert no_grid(one) == "" and "2 views, each with a grid of its own" in no_grid(two)

    def bundle(layout: Layout, *others: Bucket) -> Any:
        return SimpleNamespace(layout=layout, others=others, buckets=(layout, *others))

    assert no_pictures(bundle(one)) == "" and no_pictures(bundle(two)) == no_grid(two)
    assert "2 image sizes" in no_pictures(bundle(one, Bucket(one, {})))
