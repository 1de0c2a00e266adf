# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from secateur.artifacts import Dimensions
from secateur.evaluation.demo import evaluate
from secateur.evaluation.overlay import CAPTION, GAP, PANEL, overlay
from secateur.evaluation.retention import retention
from secateur.evaluation.speed import decoder_flops, rows_per_layer
from secateur.runtime import Pipeline


def test_retention_counts_and_brackets() -> None:
    reference = [True] * 80 + [False] * 20
    ours = [True] * 60 + [False] * 40
    found = retention(ours, reference)
    assert (found.questions, found.accuracy) == (100, 0.6) and found.retention == pytest.approx(0.75)
    assert found.accuracy_interval[0] < 0.6 < found.accuracy_interval[1]
    assert found.retention_interval[0] < 0.75 < found.retention_interval[1]
    # The binomial interval of 60 of 100 is about 0.50 to 0.70.
    assert found.accuracy_interval == pytest.approx((0.5, 0.7), abs=0.02)


def test_retention_of_itself_is_one() -> None:
    same = retention([True, False, True], [True, False, True])
    assert same.retention == 1 and same.retention_interval == (1, 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_retention_takes_any_pairs(pairs: list[tuple[bool, bool]]) -> None:
    ours, reference = [a for a, _ in pairs], [b for _, b in pairs]
    if not any(reference):
        with pytest.raises(ValueError, match="no right answer"):
            retention(ours, reference)
        return
    found = retention(ours, reference)
    low, high = found.accuracy_interval
    assert 0 <= low <= high <= 1 and found.retention == pytest.approx(sum(ours) / sum(reference))


def test_retention_needs_pairs() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        retention([True], [True, False])
    with pytest.raises(ValueError, match="cannot be paired"):
        retention([], [])


def test_flops_of_llava_7b() -> None:
    """A decoder of LLaMA-7B reads 640 rows with about two FLOPs per weight and row, plus attention."""
    d = Dimensions(32, 4096, 32, 32, 128, 11008, 32064, 4096, 1024)
    weights = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)
    assert decoder_flops([640] * 32, d) == 2 * 640 * weights + 32 * 4 * 640 * 640 * 4096


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


def test_the_demo_answers_and_pruning_keeps_most_of_it(demo_bundle: tuple[Path, dict[str, Any]]) -> None:
    """Held-out questions through the exported chain: the trained model works, and so does it pruned."""
    with Pipeline.load(demo_bundle[0]) as vlm:
        found = evaluate(vlm, questions=120, seed=1)
        answer = vlm.ask(np.zeros((96, 96, 3), np.uint8), "is there a five ?")
        assert len(rows_per_layer(answer, vlm)) == 16
    (pruned,) = (row for name, row in found.items() if name != "full")
    assert found["full"]["accuracy"] >= 0.93
    assert pruned["retention"] >= 0.8
