# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from secateur.evaluation.overlay import CAPTION, GAP, PANEL, overlay


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


def test_of_many_gates_three_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda _self, _xy, text, **_: said.append(text))
    kept = [[0] * (j + 1) for j in range(16)]
    sheet = overlay(Image.new("RGB", (24, 24)), (4, 4), kept, ["encoder", *(f"layer {j}" for j in range(1, 16))])
    assert sheet.width == 4 * (PANEL + GAP) - GAP
    assert said == ["16 tokens", "encoder: 1", "layer 7: 8", "layer 15: 16"]
