# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from PIL import Image

from secateur.evaluation.overlay import CAPTION, GAP, PANEL, overlay


def test_overlay_dims_what_was_dropped() -> None:
    sheet = np.asarray(overlay(Image.new("RGB", (24, 24), (0, 0, 0)), (2, 2), [[0, 3]], [5]))
    assert sheet.shape == (PANEL + CAPTION, 2 * PANEL + GAP, 3)
    panel = sheet[CAPTION:, PANEL + GAP :].mean(axis=2)
    half = PANEL // 2
    dark = [
        [panel[:half, :half].mean(), panel[:half, half:].mean()],
        [panel[half:, :half].mean(), panel[half:, half:].mean()],
    ]
    assert dark[0][0] < 10 and dark[1][1] < 10 and dark[0][1] > 150 and dark[1][0] > 150
