# SPDX-License-Identifier: Apache-2.0
"""Pixel values against transformers' own PIL image processor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secateur.errors import BadImage
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import Preprocess, center_crop, pixel_values

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
SIZES = [(1, 1), (1, 400), (400, 1), (33, 97), (97, 33), (2, 3), (48, 48), (47, 49), (640, 480), (301, 1200)]
MODES = ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "PA", "HSV", "RGBX"]
RESIZES: list[tuple[int, ...] | None] = [(48,), (47,), (40, 56), None]
CROPS = [(48, 48), (31, 64), (65, 64), None]


def random_image(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(pixels)
    if mode == "PA":
        return image.convert("LA").convert(mode)
    if mode in ("RGBA", "LA"):
        return image.convert(mode)
    return image.convert("RGB").convert("L" if mode in ("F") else mode).convert(mode)


def theirs(image: Image.Image, steps: Preprocess) -> Any:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    resize = steps.resize or (1, 1)
    size = {"shortest_edge": resize[0]} if len(resize) == 1 else {"height": resize[0], "width": resize[1]}
    crop = steps.crop or (1, 1)
    processor = CLIPImageProcessorPil(
        do_resize=steps.resize is not None,
        size=size,
        resample=Image.Resampling[steps.resample.upper()],
        do_center_crop=steps.crop is not None,
        crop_size={"height": crop[0], "width": crop[1]},
        do_rescale=steps.rescale is not None,
        rescale_factor=steps.rescale,
        do_normalize=steps.mean is not None,
        image_mean=steps.mean,
        image_std=steps.std,
    )
    return processor(images=image, return_tensors="np")["pixel_values"]


def steps(resize: tuple[int, ...] | None, crop: tuple[int, int] | None, resample: str = "bicubic") -> Preprocess:
    return Preprocess(resize, resample, crop, 1 / 255, MEAN, STD)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("resize", RESIZES, ids=str)
def test_sizes(size: tuple[int, int], resize: tuple[int, ...] | None) -> None:
    image = random_image("RGB", size)
    for crop in CROPS:
        assert_equal(image, steps(resize, crop))


@pytest.mark.parametrize("mode", MODES)
def test_modes(mode: str) -> None:
    try:
        image = random_image(mode, (37, 53))
    except ValueError as problem:
        pytest.skip(f"Pillow cannot make this mode: {problem}")
    assert_equal(image, steps((48,), (48, 48)))


@pytest.mark.parametrize("resample", ["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"])
def test_filters(resample: str) -> None:
    assert_equal(random_image("RGB", (70, 45)), steps((48,), (48, 48), resample))


def test_steps_left_out() -> None:
    image = random_image("RGB", (70, 45))
    assert_equal(image, Preprocess(None, "bicubic", None, None, None, None))
    assert_equal(image, Preprocess((20,), "bicubic", None, 1 / 255, None, None))
    assert_equal(image, Preprocess(None, "bicubic", (20, 20), None, MEAN, STD))


@given(
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    edge=st.integers(1, 60),
    crop=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_size(size: tuple[int, int], edge: int, crop: tuple[int, int], seed: int) -> None:
    assert_equal(random_image("RGB", size, seed), steps((edge,), crop))


def assert_equal(image: Image.Image, plan: Preprocess) -> None:
    got, want = pixel_values(load_image(image), plan), theirs(image, plan)
    assert got.dtype == np.float32 and got.shape == want.shape and got.flags.c_contiguous
    scale = np.reshape(plan.std or (1, 1, 1), (3, 1, 1)) * (1 if plan.rescale else 1 / 255)
    assert np.abs((got - want) * scale).max() <= 1e-6


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
def test_center_crop_has_its_size_and_keeps_the_middle(height: int, width: int, rows: int, columns: int) -> None:
    pixels = np.arange(1, height * width + 1, dtype=np.uint16).reshape(height, width, 1).astype(np.uint8)
    cut = center_crop(pixels, rows, columns)
    assert cut.shape == (rows, columns, 1)
    assert np.count_nonzero(cut) <= min(height, rows) * min(width, columns)
    if rows <= height and columns <= width:
        top, left = (height - rows) // 2, (width - columns) // 2
        assert np.array_equal(cut, pixels[top : top + rows, left : left + columns])


def test_extreme_shape_is_refused() -> None:
    with pytest.raises(BadImage, match="1 x 200000 would be resized to 336 x 67200000"):
        pixel_values(Image.new("RGB", (1, 200_000)), steps((336,), (336, 336)))


@pytest.mark.parametrize(
    "fields",
    [
        {"resample": "cubic"},
        {"resize": ()},
        {"resize": (0,)},
        {"resize": (1, 2, 3)},
        {"crop": (0, 1)},
        {"mean": None},
        {"std": (1.0, 0.0, 1.0)},
        {"mean": (1.0,)},
    ],
)
def test_steps_that_cannot_be(fields: dict[str, Any]) -> None:
    good: dict[str, Any] = {"resize": (8,), "resample": "bicubic", "crop": (8, 8), "rescale": 1.0}
    with pytest.raises(ValueError):
        Preprocess(**(good | {"mean": MEAN, "std": STD} | fields))
