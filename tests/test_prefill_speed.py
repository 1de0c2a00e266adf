# SPDX-License-Identifier: Apache-2.0
"""The benchmark of prefill speed: FLOPs, rows of each layer, and its options."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.prefill_speed import decoder_flops, main, rows_per_layer
from secateur.bundle.layout import Dimensions
from secateur.cli import one_line
from secateur.runtime import Pipeline


def test_flops_of_llava_7b() -> None:
    """The decoder of LLaMA-7B needs about two FLOPs per weight and row, plus attention, for 640 rows."""
    d = Dimensions(32, 4096, 32, 32, 128, 11008, 32064, 4096, 1024)
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert decoder_flops([640] * 32, d) == 2 * 640 * weights + 32 * 4 * 640 * 640 * 4096


def test_every_layer_has_its_rows(demo_bundle: tuple[Path, dict[str, Any]]) -> None:
    with Pipeline.load(demo_bundle[0]) as vlm:
        answer = vlm.ask(np.zeros((96, 96, 3), np.uint8), "is there a five ?")
        rows = rows_per_layer(answer, vlm)
        assert len(rows) == 16 and rows[0] == rows[-1] + 144 - 12


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--decoder-layers", "1"], "--decoder-layers is 1; it must be at least 2"),
        (["--rounds", "0"], "--rounds is 0; it must be at least 1"),
        (["--threads", "0"], "--threads is 0; it must be at least 1"),
        (["--width", "96"], "--width is 96; it must be a multiple of 64"),
    ],
)
def test_wrong_use(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["speed", *words])
    assert one_line(main) == 2
    assert capsys.readouterr().err == f"secateur: error: {said}\n"
