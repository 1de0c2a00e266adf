# SPDX-License-Identifier: Apache-2.0
"""Pixel values equal those of transformers' PIL image processor bit by bit, and tiles equal plain slices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secateur.bundle.preprocess import Preprocess, Tile
from secateur.bundle.strict_json import read_json, to_json
from secateur.errors import BadBundle, BadImage
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import center, cut, pixel_values, views

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


def test_skipped_steps() -> None:
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
@settings(max_examples=40)
def test_any_size(size: tuple[int, int], edge: int, crop: tuple[int, int], seed: int) -> None:
    assert_equal(random_image("RGB", size, seed), steps((edge,), crop))


def assert_equal(image: Image.Image, plan: Preprocess) -> None:
    got, want = pixel_values(load_image(image), plan), theirs(image, plan)
    assert got.dtype == np.float32 and got.flags.c_contiguous
    np.testing.assert_array_equal(got, want)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 20), st.integers(1, 20))
@settings(max_examples=50)
def test_the_center_has_its_size_and_keeps_the_middle(height: int, width: int, rows: int, columns: int) -> None:
    pixels = np.arange(1, height * width + 1, dtype=np.uint16).reshape(height, width, 1).astype(np.uint8).repeat(3, 2)
    found = cut(pixels, center((height, width), (rows, columns)))
    assert found.shape == (rows, columns, 3)
    assert np.count_nonzero(found[..., 0]) <= min(height, rows) * min(width, columns)
    if rows <= height and columns <= width:
        top, left = (height - rows) // 2, (width - columns) // 2
        assert np.array_equal(found, pixels[top : top + rows, left : left + columns])


@given(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 9), st.integers(1, 9)))
@settings(max_examples=50)
def test_a_window_pixel_by_pixel(window: tuple[int, int, int, int]) -> None:
    pixels, fill = np.asarray(random_image("RGB", (5, 4))), (1, 2, 3)
    top, left, height, width = window
    found = cut(pixels, window, fill)
    assert found.shape == (height, width, 3)
    for row in range(height):
        for column in range(width):
            y, x = top + row, left + column
            assert tuple(found[row, column]) == (tuple(pixels[y, x]) if 0 <= y < 4 and 0 <= x < 5 else fill)


def test_tiles_are_windows_of_resized_images() -> None:
    image = random_image("RGB", (30, 20))
    tiles = (
        Tile(((8, 10),)),
        Tile(((40, 50), (16, 20)), (8, 10, 8, 10)),
        Tile(((40, 50), (16, 20)), (-4, 15, 8, 10), (9, 8, 7)),
    )
    plan = Preprocess(None, "bilinear", None, 1 / 255, MEAN, STD, "stretch", (20, 30), (0, 0, 0), tiles)
    twice = image.resize((50, 40), Image.Resampling.BILINEAR).resize((20, 16), Image.Resampling.BILINEAR)
    framed = Image.new("RGB", (40, 40), (9, 8, 7))
    framed.paste(twice, (10, 10))
    expected = [
        image.resize((10, 8), Image.Resampling.BILINEAR),
        twice.crop((10, 8, 20, 16)),
        framed.crop((25, 6, 35, 14)),
    ]
    for found, want in zip(views(image, plan), expected, strict=True):
        np.testing.assert_array_equal(found, np.asarray(want))
    assert plan.pixels == (3, 3, 8, 10) and plan.size == (8, 10)
    bare = Preprocess(None, "bilinear", None, 1 / 255, MEAN, STD)
    singly = np.concatenate([pixel_values(view, bare) for view in expected])
    np.testing.assert_array_equal(pixel_values(image, plan), singly[None])


def test_one_tile_has_a_tile_axis() -> None:
    plan = Preprocess((6, 6), "bilinear", None, None, None, None, tiles=(Tile(),))
    assert plan.pixels == (1, 3, 6, 6) and pixel_values(random_image("RGB", (9, 9)), plan).shape == (1, 1, 3, 6, 6)


def test_the_shape_of_pixel_values_without_an_image() -> None:
    nothing: dict[str, Any] = {"resample": "bicubic", "rescale": None, "mean": None, "std": None}
    assert Preprocess(resize=(48,), crop=None, **nothing).pixels is None
    assert Preprocess(resize=None, crop=None, fit="square", **nothing).pixels is None
    assert Preprocess(resize=(48,), crop=None, fit="square", **nothing).pixels == (3, 48, 48)
    assert Preprocess(resize=(48, 50), crop=None, **nothing).pixels == (3, 48, 50)
    assert Preprocess(resize=(48,), crop=(40, 41), **nothing).pixels == (3, 40, 41)
    fitted: dict[str, Any] = {"fit": "letterbox", "canvas": (20, 30)}
    assert Preprocess(resize=None, crop=None, **fitted, **nothing).pixels == (3, 20, 30)
    assert Preprocess(resize=(10,), crop=None, **fitted, **nothing).pixels == (3, 10, 15)


def test_a_file_of_the_first_version_gives_the_same_pixels(tmp_path: Path) -> None:
    file = tmp_path / "preprocess.json"
    old = {"resize": [48], "resample": "bicubic", "crop": [48, 48], "rescale": 1 / 255, "mean": MEAN, "std": STD}
    file.write_text(json.dumps(old))
    image, plan = random_image("RGB", (70, 45)), read_json(Preprocess, file, BadBundle)
    pixels = np.asarray(image.resize((74, 48), Image.Resampling.BICUBIC))[:, 13:61]
    rescaled = (pixels.astype(np.float64) / 255).astype(np.float32)
    values = (rescaled - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    assert np.array_equal(pixel_values(image, plan), values.transpose(2, 0, 1)[None])


def test_the_file_contains_every_step(tmp_path: Path) -> None:
    tile = Tile(((8, 8), (4, 4)), (-1, 2, 4, 4), (5, 6, 7))
    plan = Preprocess(None, "lanczos", None, 1 / 255, MEAN, STD, "crop", (9, 9), (1, 2, 3), (tile, Tile(((4, 4),))))
    (tmp_path / "preprocess.json").write_text(to_json(plan))
    assert read_json(Preprocess, tmp_path / "preprocess.json", BadBundle) == plan


def test_extreme_shape_is_refused() -> None:
    with pytest.raises(BadImage, match="1 x 200000 would be resized to 336 x 67200000"):
        pixel_values(Image.new("RGB", (1, 200_000)), steps((336,), (336, 336)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resample": "cubic"}, "not a filter"),
        ({"resize": ()}, "must be .edge,. or .height, width."),
        ({"resize": (0,)}, "at least 1"),
        ({"resize": (1, 2, 3)}, "must be .edge,. or .height, width."),
        ({"crop": (0, 1)}, "at least 1 x 1"),
        ({"crop": (9000, 9000)}, "at most 64000000 pixels"),
        ({"mean": None}, "together"),
        ({"std": (1.0, 0.0, 1.0)}, "three numbers of 1e-06 to"),
        ({"mean": (1e300, 0.0, 1.0), "std": (1.0,) * 3}, "three numbers of 0 to 1000000.0"),
        ({"rescale": 1e300}, "at most 1000000.0"),
        ({"resize": (10_000, 10_000)}, "must have at most 64000000 pixels"),
        ({"resize": (10_000,)}, "must have at most 64000000 pixels"),
        ({"tiles": (Tile((), (0, 0, 8000, 8000)),) * 2}, "the tiles have 128000000 pixels in all"),
        ({"mean": (1.0,)}, "three numbers"),
        ({"fit": "fill"}, "fit 'fill' is not known; use one of letterbox, stretch, crop, square"),
        ({"fit": "crop"}, "letterbox, stretch and crop need a canvas"),
        ({"fit": "square", "canvas": (4, 4)}, "need a canvas, others have none"),
        ({"canvas": (4, 4)}, "need a canvas, others have none"),
        ({"fit": "crop", "canvas": (0, 4)}, "1 to 64000000 pixels"),
        ({"fit": "crop", "canvas": (9000, 9000)}, "1 to 64000000 pixels"),
        ({"fill": (0, 256, 0)}, "0 to 255"),
        ({"fill": (0, 0)}, "three integers"),
        ({"crop": None, "tiles": (Tile(),)}, "so that their number does not depend on the image"),
        ({"tiles": (Tile(((4, 4),)), Tile())}, "differ in size"),
    ],
)
def test_invalid_steps_are_refused(fields: dict[str, Any], message: str) -> None:
    good: dict[str, Any] = {"resize": (8,), "resample": "bicubic", "crop": (8, 8), "rescale": 1.0}
    with pytest.raises(ValueError, match=message):
        Preprocess(**(good | {"mean": MEAN, "std": STD} | fields))


@pytest.mark.parametrize(
    "fields", [{"resizes": ((0, 4),)}, {"window": (0, 0, 0, 4)}, {"window": (0, 0, 9000, 9000)}, {"fill": (0, 0, -1)}]
)
def test_invalid_tiles_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="1 to 64000000 pixels|0 to 255"):
        Tile(**fields)


def test_a_long_list_is_shown_by_its_ends(tmp_path: Path) -> None:
    file = tmp_path / "preprocess.json"
    plan = {"resize": None, "resample": "bicubic", "crop": None, "rescale": None}
    file.write_text(json.dumps(plan | {"mean": [0.5] * 3000, "std": [1, 1, 1]}))
    with pytest.raises(
        BadBundle, match=r"mean \(0.5, 0.5, .* \.\.\. .*must be three numbers of 0 to 1000000"
    ) as problem:
        read_json(Preprocess, file, BadBundle)
    assert len(str(problem.value)) < len(str(file)) + 700
