# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from secateur.bundle.layout import Layout, View
from secateur.bundle.manifest import Bucket
from secateur.bundle.schedule import KINDS
from secateur.evaluation.gate_pictures import (
    CAPTION,
    GAP,
    OUTSIDE_DECODER,
    PANEL,
    overlay,
    place,
    shown_gates,
    why_no_grid,
    why_no_pictures,
)


def test_gates_shown() -> None:
    assert shown_gates(0) == [] and shown_gates(3) == [0, 1, 2]
    assert shown_gates(4) == [0, 1, 3] and shown_gates(16) == [0, 7, 15]


def test_only_gates_in_the_decoder_have_a_layer() -> None:
    assert place("prune", 4) == place("route", 4) == "layer 4"
    assert place("vision", 0) == "encoder" and place("downsample", 0) == "smaller image"
    assert set(OUTSIDE_DECODER) < set(KINDS)


def test_pictures_need_one_grid() -> None:
    view = View(1, 4, (2, 2))
    one, two = Layout((1,), (view,)), Layout((1,), (view, View(5, 4, (2, 2))))
    assert why_no_grid(one) == "" and "2 views, each with a grid of its own" in why_no_grid(two)

    def bundle(layout: Layout, *others: Bucket) -> Any:
        return SimpleNamespace(layout=layout, others=others, buckets=(layout, *others))

    assert why_no_pictures(bundle(one)) == "" and why_no_pictures(bundle(two)) == why_no_grid(two)
    assert "2 image sizes" in why_no_pictures(bundle(one, Bucket(one, {})))


def test_overlay_dims_what_was_dropped() -> None:
    sheet = np.asarray(overlay(Image.new("RGB", (24, 24), (0, 0, 0)), (2, 2), [[0, 3]], ["layer 5"]))
    assert sheet.shape == (PANEL + CAPTION, 2 * PANEL + GAP, 3)
    panel = sheet[CAPTION:, PANEL + GAP :].mean(axis=2)
    half = PANEL // 2
    dark = [
        [panel[:half, :half].mean(), panel[:half, half:].mean()],
        [panel[half:, :half].mean(), panel[half:, half:].mean()],
    ]
    assert dark[0][0] < 10 and dark[1][1] < 10 and dark[0][1] > 150 and dark[1][0] > 150


def test_three_of_many_gates_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _self, _xy, text, **_: said.append(text))
    kept = [[0] * (j + 1) for j in range(16)]
    sheet = overlay(Image.new("RGB", (24, 24)), (4, 4), kept, ["encoder", *(f"layer {j}" for j in range(1, 16))])
    assert sheet.width == 4 * (PANEL + GAP) - GAP
    assert said == ["16 tokens", "encoder: 1", "layer 7: 8", "layer 15: 16"]
