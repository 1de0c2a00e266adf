# SPDX-License-Identifier: Apache-2.0
"""Models that accept many image sizes: which ones, and their patches against transformers' own."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from secateur.bundle.preprocess import Size
from secateur.errors import BadModel
from secateur.runtime.preprocess import pixel_values, whole_image
from secateur.vision.preprocessing import preprocess
from tests.model_fixtures.processors import SUPPORTED

Pixels = NDArray[np.float32]
SIZES = [(1, 1), (1, 4000), (4000, 1), (33, 97)]


def patches(pixels: Pixels, patch: int, merge: int, frames: int) -> tuple[Pixels, list[int]]:
    """Rows of Qwen's patches of [3,H,W], grouped by merge x merge blocks; and the grid."""
    rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
    found = []
    for block_row in range(0, rows, merge):
        for block_column in range(0, columns, merge):
            for row in range(block_row, block_row + merge):
                for column in range(block_column, block_column + merge):
                    piece = pixels[:, row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
                    found.append(np.stack([piece] * frames, axis=1).reshape(-1))
    return np.array(found), [1, rows, columns]


QWEN = {
    "qwen2_vl": Qwen2VLImageProcessorPil(),
    "qwen3_vl": Qwen2VLImageProcessorPil(
        patch_size=16,
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ),
    "small": Qwen2VLImageProcessorPil(patch_size=4, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}),
}


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize(
    ("name", "bucket"),
    [
        ("qwen2_vl", (56, 84)),
        ("qwen2_vl", (28, 448)),
        ("qwen3_vl", (256, 288)),
        ("small", (16, 24)),
        ("small", (8, 64)),
    ],
)
def test_qwen(name: str, bucket: Size, size: Size) -> None:
    processor = QWEN[name]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    steps = preprocess(processor, SUPPORTED, bucket)
    assert steps.pixels == (3, *bucket)
    rows, grid = patches(pixel_values(image, steps)[0], processor.patch_size, processor.merge_size, 2)
    theirs = processor(whole_image(image, steps), return_tensors="np")
    np.testing.assert_array_equal(rows, theirs["pixel_values"])
    assert [grid] == theirs["image_grid_thw"].tolist()


@given(st.integers(1, 100), st.integers(1, 700))
@example(5, 520)
@example(16, 3208)
@example(1, 1)
@settings(max_examples=60)
def test_qwen_accepts_sizes_that_it_does_not_resize(height: int, width: int) -> None:
    def keeps(size: Size) -> bool:
        return max(size) <= 200 * min(size) and smart_resize(*size, 8, 256, 4096) == size

    if keeps((height, width)):
        assert preprocess(QWEN["small"], SUPPORTED, (height, width)).pixels == (3, height, width)
        return
    with pytest.raises(BadModel, match=f"image size {width}x{height} is not one that the model keeps: .*of 8") as told:
        preprocess(QWEN["small"], SUPPORTED, (height, width))
    named = re.findall(r"\d+x\d+", str(told.value).partition("nearest")[2])
    assert all(keeps((int(h), int(w))) for w, h in (size.split("x") for size in named))
    assert named


def test_qwen_names_the_nearest_sizes() -> None:
    with pytest.raises(
        BadModel, match="450x450 is .* multiples of 28, of 3136 to 1003520 .* nearest: 448x448, 476x448$"
    ):
        preprocess(QWEN["qwen2_vl"], SUPPORTED, (450, 450))
    with pytest.raises(BadModel, match="2016x2016 is .* nearest: 1008x980, 980x1008$"):
        preprocess(QWEN["qwen2_vl"], SUPPORTED, (2016, 2016))
    anything = Qwen2VLImageProcessorPil(do_resize=False)
    assert preprocess(anything, SUPPORTED, (2016, 2016)).pixels == (3, 2016, 2016)
    with pytest.raises(BadModel, match="56x20 is .* multiples of 28; the nearest: 56x28$"):
        preprocess(anything, SUPPORTED, (20, 56))
