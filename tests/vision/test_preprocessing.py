# SPDX-License-Identifier: Apache-2.0
"""Pixel values against transformers' own PIL image processors, bit for bit.

A family with a bucket fits an image onto its canvas first; the processor then gets the canvas. Where a family takes
images of any size as they are, so does the processor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from transformers import (
    AutoImageProcessor,
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    SiglipImageProcessorPil,
    SmolVLMImageProcessorPil,
)

from secateur.bundle.preprocess import Preprocess, Size
from secateur.demo import model_directory
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values, whole_image
from secateur.vision.preprocessing import preprocess
from tests.model_fixtures.processors import SEVERAL, SUPPORTED

Pixels = NDArray[np.float32]
SIZES = [(1, 1), (1, 4000), (4000, 1), (33, 97)]
PINPOINTS = [[28, 56], [56, 28], [56, 56], [28, 28], [28, 84], [84, 28]]
MEAN = [0.48145466, 0.4578275, 0.40821073]


def noise(size: Size, seed: int = 0) -> Image.Image:
    """An RGB image of height and width `size`."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8))


@dataclass(frozen=True)
class Case:
    """An image processor, buckets that it accepts, and a function that runs it: [1,3,h,w] or [1,T,3,h,w]."""

    processor: Any
    buckets: tuple[Size, ...]
    run: Callable[[Any, Image.Image], Pixels]


def plain(processor: Any, image: Image.Image) -> Pixels:
    values: Pixels = processor(image, return_tensors="np")["pixel_values"]
    return values


def counted(processor: Any, image: Image.Image) -> Pixels:
    """GotOcr2 returns the tiles of all images in one batch."""
    out = processor(image, return_tensors="np")
    assert out["num_patches"].tolist() == [len(out["pixel_values"])]
    return plain(processor, image)[None]


def nothing_hidden(processor: Any, image: Image.Image) -> Pixels:
    """Idefics3 masks padded pixels; of one image none is padded."""
    out = processor(image, return_tensors="np")
    assert out["pixel_attention_mask"].all()
    return plain(processor, image)


def smaller(cls: Any, **settings: Any) -> Any:
    return cls(size={"longest_edge": 112}, max_image_size={"longest_edge": 28}, **settings)


FIXED = {
    "clip": Case(
        CLIPImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}), ((48, 48),), plain
    ),
    "clip, cropped": Case(
        CLIPImageProcessorPil(size={"shortest_edge": 47}, crop_size={"height": 31, "width": 60}), ((31, 60),), plain
    ),
    "siglip": Case(SiglipImageProcessorPil(size={"height": 40, "width": 56}), ((40, 56),), plain),
    "paligemma": Case(SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=3), ((48, 48),), plain),
    "llava": Case(
        LlavaImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 48, "width": 48}), ((48, 48),), plain
    ),
    "llava, padded": Case(
        LlavaImageProcessorPil(size={"shortest_edge": 48}, crop_size={"height": 40, "width": 44}, do_pad=True),
        ((40, 44),),
        plain,
    ),
}
BUCKETS = ((28, 28), (56, 28), (30, 85), (97, 33), (200, 200), (5, 3))
TILED = {
    "llava_next": Case(
        LlavaNextImageProcessorPil(
            size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS
        ),
        BUCKETS,
        plain,
    ),
    "llava_onevision": Case(
        LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=PINPOINTS),
        BUCKETS,
        plain,
    ),
    "internvl": Case(
        GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=6),
        BUCKETS,
        counted,
    ),
    "internvl, at least 2": Case(
        GotOcr2ImageProcessorPil(size={"height": 20, "width": 28}, crop_to_patches=True, min_patches=2, max_patches=4),
        BUCKETS,
        counted,
    ),
    "internvl, whole": Case(GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}), BUCKETS, counted),
    "idefics3": Case(smaller(Idefics3ImageProcessorPil), BUCKETS, nothing_hidden),
    "idefics3, whole": Case(smaller(Idefics3ImageProcessorPil, do_image_splitting=False), BUCKETS, nothing_hidden),
    "idefics3, as large as it is": Case(smaller(Idefics3ImageProcessorPil, do_resize=False), BUCKETS, nothing_hidden),
    "idefics3, one tile": Case(
        Idefics3ImageProcessorPil(size={"longest_edge": 28}, max_image_size={"longest_edge": 28}),
        BUCKETS,
        nothing_hidden,
    ),
    "smolvlm": Case(smaller(SmolVLMImageProcessorPil), BUCKETS, nothing_hidden),
}


def ours(case: Case, image: Image.Image, bucket: Size, fit: str | None = None) -> tuple[Pixels, Pixels]:
    """Our pixel values of `image`, and the processor's of its canvas."""
    steps = preprocess(case.processor, SUPPORTED, bucket, fit)
    image = load_image(image)
    canvas = whole_image(image, steps) if steps.canvas else image
    return checked(image, steps), case.run(case.processor, canvas)


def checked(image: Image.Image, steps: Preprocess) -> Pixels:
    values = pixel_values(image, steps)
    assert values.dtype == np.float32 and values.shape == (1, *(steps.pixels or ())) and values.flags.c_contiguous
    return values


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", FIXED)
def test_images_of_any_size(name: str, size: Size) -> None:
    for bucket in FIXED[name].buckets:
        np.testing.assert_array_equal(*ours(FIXED[name], noise(size), bucket))


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", TILED)
def test_canvases_in_tiles(name: str, size: Size) -> None:
    for bucket in TILED[name].buckets:
        np.testing.assert_array_equal(*ours(TILED[name], noise(size), bucket))


@pytest.mark.parametrize("name", [*FIXED, *TILED])
@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    bucket=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    fit=st.sampled_from(["letterbox", "stretch", "crop", None]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8)
def test_any_size_and_bucket(name: str, size: Size, bucket: Size, fit: str | None, seed: int) -> None:
    case = (FIXED | TILED)[name]
    if name in FIXED:
        bucket, fit = case.buckets[0], None
    np.testing.assert_array_equal(*ours(case, noise(size, seed), bucket, fit))


def kinds_of_image() -> dict[str, tuple[Image.Image, Image.Image]]:
    """Images of users, and the same pictures for a processor that ignores EXIF and clips 16 bits."""
    rgb, exif = noise((33, 57)), Image.Exif()
    exif[0x0112] = 6
    turned = rgb.copy()
    turned.info["exif"] = exif.tobytes()
    clear = rgb.convert("RGBA")
    clear.putalpha(rgb.getchannel("R"))
    levels = np.random.default_rng(1).integers(0, 256, (33, 57), np.uint16)
    made = {mode: rgb.convert(mode) for mode in ("CMYK", "P", "L", "1", "YCbCr")}
    made |= {"RGBA": clear, "LA": clear.convert("LA"), "transparent palette": clear.quantize()}
    pairs = {name: (image, image) for name, image in made.items()}
    pairs["EXIF"] = (turned, rgb.transpose(Image.Transpose.ROTATE_270))
    pairs["16 bits"] = (Image.fromarray(levels * 257), Image.fromarray(levels.astype(np.uint8)))
    return pairs


@pytest.mark.parametrize("kind", kinds_of_image())
def test_kinds_of_image(kind: str) -> None:
    given, same = kinds_of_image()[kind]
    for name, bucket in (("clip", (48, 48)), ("paligemma", (48, 48)), ("llava, padded", (40, 44))):
        case = FIXED[name]
        np.testing.assert_array_equal(
            checked(load_image(given), preprocess(case.processor, SUPPORTED, bucket)), case.run(case.processor, same)
        )
    for name in ("llava_next", "idefics3"):
        np.testing.assert_array_equal(*ours(TILED[name], given, (56, 84)))


def test_one_of_several_images_of_onevision_is_padded_to_a_square() -> None:
    case = TILED["llava_onevision"]
    steps = preprocess(case.processor, SEVERAL, (56, 84))
    for size in [(33, 97), (97, 33), (1, 60), (64, 64)]:
        pair = [noise(size), noise(size, 1)]
        theirs = case.processor([pair], return_tensors="np")["pixel_values"]
        np.testing.assert_array_equal(np.concatenate([checked(image, steps) for image in pair]), theirs)


def test_settings_passed_by_the_processor_are_used() -> None:
    """InternVL's processor requests tiles from an image processor that makes none by default."""
    inner: Any = GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, image_mean=MEAN)
    outer = SimpleNamespace(image_processor=inner, images_kwargs={"crop_to_patches": True})
    image = noise((30, 60))
    assert len(preprocess(inner, SUPPORTED, (28, 56)).tiles) == 1
    steps = preprocess(outer, SUPPORTED, (28, 56))
    theirs = inner(whole_image(image, steps), crop_to_patches=True, return_tensors="np")["pixel_values"]
    np.testing.assert_array_equal(checked(image, steps)[0], theirs)
    assert len(steps.tiles) == 3


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
def test_an_image_of_the_bucket_s_size_is_the_canvas(fit: str) -> None:
    image = noise((30, 85))
    for case in TILED.values():
        steps = preprocess(case.processor, SUPPORTED, image.size[::-1], fit)
        np.testing.assert_array_equal(checked(image, steps), case.run(case.processor, image))


@pytest.mark.parametrize("fit", ["letterbox", "stretch", "crop"])
def test_a_fixed_size_may_be_fitted_too(fit: str) -> None:
    """The processor then has nothing left to crop."""
    processor, image = FIXED["clip"].processor, noise((33, 97))
    steps = preprocess(processor, SUPPORTED, (48, 48), fit)
    assert steps.fit == fit and steps.pixels == (3, 48, 48)
    assert steps.fill == tuple(int(255 * value) for value in MEAN)
    bare = Preprocess(None, "bicubic", None, None, None, None, fit, (48, 48), steps.fill)
    np.testing.assert_array_equal(checked(image, steps), plain(processor, whole_image(image, bare)))


def test_a_fixed_size_may_be_padded_to_a_square() -> None:
    edge = {"height": 48, "width": 48}
    padded = LlavaImageProcessorPil(size=edge, crop_size=edge, do_pad=True)
    for size in SIZES:
        steps = preprocess(CLIPImageProcessorPil(size=edge, crop_size=edge), SUPPORTED, (48, 48), "square")
        np.testing.assert_array_equal(checked(noise(size), steps), plain(padded, noise(size)))


def test_the_steps_of_the_demo_do_not_change() -> None:
    processor = AutoImageProcessor.from_pretrained(model_directory(), backend="pil")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    steps = preprocess(processor, SUPPORTED, (96, 96))
    assert steps == Preprocess((96,), "bicubic", (96, 96), 1 / 255, mean, std)
    for size in [(50, 80), (96, 96), (200, 150)]:
        np.testing.assert_array_equal(checked(noise(size), steps), plain(processor, noise(size)))


def test_one_number_stands_for_three_channels() -> None:
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8}, image_mean=0.5, image_std=0.25)
    steps = preprocess(processor, SUPPORTED, (8, 8))
    assert steps.mean == (0.5, 0.5, 0.5) and steps.std == (0.25, 0.25, 0.25)
    np.testing.assert_array_equal(checked(noise((9, 9)), steps), plain(processor, noise((9, 9))))


def test_steps_that_are_switched_off() -> None:
    processor = SiglipImageProcessorPil(size={"height": 8, "width": 8}, do_rescale=False, do_normalize=False)
    steps = preprocess(processor, SUPPORTED, (8, 8))
    assert (steps.rescale, steps.mean, steps.std) == (None, None, None)
    np.testing.assert_array_equal(checked(noise((9, 9)), steps), plain(processor, noise((9, 9))))


@pytest.mark.parametrize(
    ("processor", "bucket", "tiles", "edge"),
    [
        (
            LlavaNextImageProcessorPil(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}),
            (500, 1000),
            3,
            336,
        ),
        (LlavaOnevisionImageProcessorPil(), (768, 1152), 7, 384),
        (GotOcr2ImageProcessorPil(size={"height": 448, "width": 448}, crop_to_patches=True), (448, 896), 3, 448),
        (Idefics3ImageProcessorPil(), (728, 1456), 9, 364),
    ],
    ids=["llava_next", "llava_onevision", "internvl", "idefics3"],
)
def test_sizes_of_real_checkpoints(processor: Any, bucket: Size, tiles: int, edge: int) -> None:
    steps, image = preprocess(processor, SUPPORTED, bucket), noise((300, 700))
    assert steps.pixels == (tiles, 3, edge, edge)
    theirs = np.asarray(processor(whole_image(image, steps), return_tensors="np")["pixel_values"])
    np.testing.assert_array_equal(pixel_values(image, steps), theirs.reshape(1, tiles, 3, edge, edge))
