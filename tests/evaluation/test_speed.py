# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from secateur.artifacts import Dimensions
from secateur.evaluation.speed import decoder_flops, rows_per_layer
from secateur.runtime import Pipeline


def test_flops_of_llava_7b() -> None:
    """A decoder of LLaMA-7B reads 640 rows with about two FLOPs per weight and row, plus attention."""
    d = Dimensions(32, 4096, 32, 32, 128, 11008, 32064, 4096, 1024)
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert decoder_flops([640] * 32, d) == 2 * 640 * weights + 32 * 4 * 640 * 640 * 4096


def test_every_layer_has_its_rows(demo_bundle: tuple[Path, dict[str, Any]]) -> None:
    with Pipeline.load(demo_bundle[0]) as vlm:
        answer = vlm.ask(np.zeros((96, 96, 3), np.uint8), "is there a five ?")
        rows = rows_per_layer(answer, vlm)
        assert len(rows) == 16 and rows[0] == rows[-1] + 144 - 12
