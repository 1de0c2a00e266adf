# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from secateur.cli import one_line
from secateur.evaluation.overlay import CAPTION, GAP, PANEL, main, overlay


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


@pytest.mark.parametrize("name", ["kept", "kept.xyz"])
def test_a_file_that_is_no_picture_is_refused_first(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["overlay", str(tmp_path / "no-bundle"), "--image", "a.png", "--prompt", "?", "--out", name]
    monkeypatch.setattr(sys, "argv", words)
    assert one_line(main) == 2
    assert capsys.readouterr().err == f"secateur: error: --out {name} is no picture; give a file such as kept.png\n"
