# SPDX-License-Identifier: Apache-2.0
"""Backend trt with the exported fp16 graphs for TensorRT, on the simulated device."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.demo.scenes import samples
from secateur.export.bundle import Exported
from secateur.runtime import Pipeline

QUESTION = "w1 w2 w3"


@pytest.fixture
def engines(
    trt_bundle: tuple[Path, Exported], tmp_path: Path, simulated: Any, build_engines: Callable[..., Path]
) -> Path:
    root = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], root)
    build_engines(root)
    return root


def test_answers_equal_those_of_backend_ort(engines: Path, simulated: Any) -> None:
    """The simulation uses ONNX Runtime's kernels, so the results are equal bit by bit."""
    image = next(iter(samples("calibration", 1, 0))).image
    with Pipeline.load(engines, backend="trt") as trt, Pipeline.load(engines, threads=1) as ort:
        assert len(trt.schedules) > 4
        for schedule in trt.schedules:
            simulated.reset()
            got, want = (p.ask(image, QUESTION, schedule, max_new_tokens=6) for p in (trt, ort))
            assert got.tokens == want.tokens and got.kept == want.kept, schedule
            assert np.array_equal(got.first_logits, want.first_logits), schedule
            assert simulated.launches >= len(got.tokens) - 2
            chats = [pipeline.open(image, schedule) for pipeline in (trt, ort)]
            for question in ("w4 w5", "w6"):
                a, b = (chat.ask(question, max_new_tokens=4) for chat in chats)
                assert a.tokens == b.tokens, schedule
