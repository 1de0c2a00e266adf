# SPDX-License-Identifier: Apache-2.0
"""Fitting of images to a canvas, and the choice of the bucket for an image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from secateur.bundle.preprocess import FITS, Preprocess, Size
from secateur.errors import BadImage
from secateur.runtime.image_sizes import choose
from secateur.runtime.preprocess import Fitted, fit, fitted, place, whole_image

BICUBIC, RED = Image.Resampling.BICUBIC, (255, 0, 0)
FEW = settings(max_examples=40)
EDGES = st.integers(1, 90)
SIZE = st.tuples(EDGES, EDGES)


def noise(size: Size, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 200, (*size, 3), np.uint8))


def on(size: Size, how: str, canvas: Size | None) -> Preprocess:
    return Preprocess(None, "bicubic", None, None, None, None, how, canvas, RED)


@given(SIZE, SIZE)
@FEW
def test_letterbox_keeps_the_shape_and_pads_one_direction(size: Size, canvas: Size) -> None:
    spot = place(size, "letterbox", canvas)
    scale = min(canvas[0] / size[0], canvas[1] / size[1])
    for axis in (0, 1):
        assert spot.size[axis] <= canvas[axis]
        assert abs(spot.size[axis] - size[axis] * scale) <= 0.5001 or spot.size[axis] == 1
    assert spot.size[0] == canvas[0] or spot.size[1] == canvas[1]
    assert (spot.top, spot.left) == ((canvas[0] - spot.size[0]) // 2, (canvas[1] - spot.size[1]) // 2)

    image, sheet = noise(size), np.asarray(fit(noise(size), "letterbox", canvas, BICUBIC, RED))
    expected = np.full((*canvas, 3), RED, np.uint8)
    resized = np.asarray(image.resize(spot.size[::-1], BICUBIC))
    expected[spot.top : spot.top + spot.size[0], spot.left : spot.left + spot.size[1]] = resized
    np.testing.assert_array_equal(sheet, expected)


@given(SIZE, SIZE)
@FEW
def test_stretch_is_a_resize(size: Size, canvas: Size) -> None:
    found = np.asarray(fit(noise(size), "stretch", canvas, BICUBIC, RED))
    np.testing.assert_array_equal(found, np.asarray(noise(size).resize(canvas[::-1], BICUBIC)))


@given(SIZE, SIZE)
@FEW
def test_crop_is_the_middle_of_the_resized_image(size: Size, canvas: Size) -> None:
    scale = max(canvas[0] / size[0], canvas[1] / size[1])
    height, width = (max(canvas[axis], int(size[axis] * scale + 0.5)) for axis in (0, 1))
    top, left = -((height - canvas[0]) // 2), -((width - canvas[1]) // 2)
    spot = place(size, "crop", canvas)
    assert (spot.size, spot.top, spot.left) == ((height, width), top, left)
    linear = Image.Resampling.BILINEAR  # does not overshoot, so the order of Pillow's two passes does not matter
    whole = noise(size).resize((width, height), linear)
    cut = np.asarray(whole.crop((-left, -top, canvas[1] - left, canvas[0] - top))).astype(int)
    found = np.asarray(fit(noise(size), "crop", canvas, linear, RED)).astype(int)
    assert found.shape == cut.shape and np.abs(found - cut).max() <= 1


@given(SIZE)
@FEW
def test_square_pads_the_shorter_edge(size: Size) -> None:
    edge = max(size)
    expected = np.full((edge, edge, 3), RED, np.uint8)
    top, left = (edge - size[0]) // 2, (edge - size[1]) // 2
    expected[top : top + size[0], left : left + size[1]] = np.asarray(noise(size))
    np.testing.assert_array_equal(np.asarray(fit(noise(size), "square", None, BICUBIC, RED)), expected)


@pytest.mark.parametrize("how", ["letterbox", "stretch", "crop"])
@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (4000, 1), (1, 200_000), (33, 97), (48, 64)], ids=str)
def test_every_image_fills_its_canvas(how: str, size: Size) -> None:
    image = Image.new("RGB", size[::-1], (9, 9, 9))
    found = fit(image, how, (48, 64), BICUBIC, RED)
    assert found.size == (64, 48) and found.getpixel((31, 23)) == (9, 9, 9)
    if size == (48, 64) or how == "stretch":
        assert found.getcolors() == [(48 * 64, (9, 9, 9))]


def test_a_square_around_a_long_image_is_refused() -> None:
    with pytest.raises(BadImage, match="1 x 9000 would be padded to 9000 x 9000, more than 64000000 pixels"):
        fit(Image.new("RGB", (1, 9000)), "square", None, BICUBIC, RED)


@pytest.mark.parametrize("how", FITS)
@given(size=SIZE, canvas=SIZE)
@FEW
def test_fitted_describes_the_canvas(how: str, size: Size, canvas: Size) -> None:
    """Padding rows and columns have the color of the padding and the numbers in the receipt."""
    steps = on(size, how, None if how == "square" else canvas)
    told = fitted(size, steps)
    sheet = np.asarray(whole_image(Image.new("RGB", size[::-1], (0, 0, 255)), steps))
    blue = (sheet == (0, 0, 255)).all(axis=2)
    assert told.bucket == sheet.shape[:2] and told.fit == how
    rows, columns = np.flatnonzero(blue.any(axis=1)), np.flatnonzero(blue.any(axis=0))
    seen = (rows[0], len(blue) - 1 - rows[-1], columns[0], blue.shape[1] - 1 - columns[-1])
    assert tuple(max(0, value) for value in told.padding) == seen
    for axis in (0, 1):
        made = told.bucket[axis] - told.padding[2 * axis] - told.padding[2 * axis + 1]
        assert made == pytest.approx(size[axis] * told.scale[axis])
    assert how != "stretch" or told.padding == (0, 0, 0, 0)
    assert how != "square" or told.scale == (1, 1)
    assert how != "crop" or max(told.padding) <= 0
    assert how != "letterbox" or min(told.padding) >= 0


def test_fitted_includes_resize_and_crop() -> None:
    steps = Preprocess((48,), "bicubic", (48, 48), None, None, None)
    assert fitted((96, 192), steps) == Fitted((48, 48), (0.5, 0.5), (0, 0, -24, -24))
    assert fitted((96, 99), steps) == Fitted((48, 48), (0.5, 49 / 99), (0, 0, 0, -1))
    square = Preprocess((48, 48), "bicubic", None, None, None, None, "square", None, RED)
    assert fitted((24, 96), square) == Fitted((48, 48), (0.5, 0.5), (18, 18, 0, 0), "square")
    none = Preprocess(None, "bicubic", None, None, None, None)
    assert fitted((5, 7), none) == Fitted((5, 7), (1, 1), (0, 0, 0, 0))


BUCKETS = st.dictionaries(st.text("abc", min_size=1, max_size=3), SIZE, min_size=1, max_size=5)


@given(SIZE, BUCKETS)
@FEW
def test_the_best_bucket_is_chosen_in_any_order(size: Size, buckets: dict[str, Size]) -> None:
    name = choose(size, buckets)
    assert choose(size, dict(reversed(buckets.items()))) == name

    def used(canvas: Size) -> float:
        height, width = (edge * min(canvas[0] / size[0], canvas[1] / size[1]) for edge in size)
        grown = height * width / (size[0] * size[1])
        return height * width / (canvas[0] * canvas[1]) * min(grown, 1 / grown)

    assert used(buckets[name]) == pytest.approx(max(map(used, buckets.values())))
    if size in buckets.values():
        assert buckets[name] == size
    turned = {key: canvas[::-1] for key, canvas in buckets.items()}
    assert used(buckets[choose(size[::-1], turned)]) == pytest.approx(used(buckets[name]))


@pytest.mark.parametrize(
    ("size", "name"),
    [
        ((448, 448), "square"),
        ((448, 672), "wide"),
        ((500, 750), "wide"),
        ((750, 500), "tall"),
        ((100, 100), "square"),
        ((1000, 1000), "large"),
        ((450, 450), "square"),
        ((3000, 4000), "large"),
        ((300, 310), "square"),
    ],
)
def test_examples_of_chosen_buckets(size: Size, name: str) -> None:
    buckets = {"square": (448, 448), "wide": (448, 672), "tall": (672, 448), "large": (896, 896)}
    assert choose(size, buckets) == name


def test_ties_go_by_area_then_size_then_name() -> None:
    assert choose((2, 2), {"b": (1, 1), "a": (4, 4)}) == "b"
    assert choose((10, 10), {"a": (80, 40), "b": (40, 80)}) == "b"
    assert choose((10, 10), {"b": (40, 80), "a": (40, 80)}) == "a"
