# SPDX-License-Identifier: Apache-2.0
"""Image processors, settings and image sizes that are refused, each with its reason in one line."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    CLIPImageProcessorPil,
    GotOcr2ImageProcessorPil,
    Idefics3ImageProcessorPil,
    LlavaImageProcessorPil,
    LlavaNextImageProcessorPil,
    LlavaOnevisionImageProcessorPil,
    Qwen2VLImageProcessorPil,
)

from secateur.bundle.preprocess import Size
from secateur.errors import BadModel
from secateur.vision.preprocessing import preprocess
from tests.model_fixtures.processors import SEVERAL, SUPPORTED


class PixtralImageProcessor(CLIPImageProcessorPil):
    pass


@pytest.mark.parametrize(
    ("processor", "bucket", "fit", "message"),
    [
        (PixtralImageProcessor(), (224, 224), None, "PixtralImageProcessor is not supported; supported: CLIPImageProc"),
        (CLIPImageProcessorPil(), (224, 224), "fill", "fit 'fill' is not known; use one of letterbox, stretch, crop"),
        (CLIPImageProcessorPil(), (0, 224), None, "image size 224x0 must be at least 1x1"),
        (CLIPImageProcessorPil(), (336, 336), None, "makes images of 224x224, not of 336x336"),
        (CLIPImageProcessorPil(do_center_crop=False), (224, 224), None, "keeps the shape of an image.*letterbox"),
        (CLIPImageProcessorPil(do_pad=True), (224, 224), None, "pads .do_pad., which is not supported"),
        (
            CLIPImageProcessorPil(size={"shortest_edge": 8, "longest_edge": 9}),
            (8, 8),
            None,
            "resizes to .*; supported: shortest_edge, or height and width",
        ),
        (LlavaImageProcessorPil(do_pad=True), (224, 200), "crop", "pads to a square, and 200x224 is none"),
        (LlavaNextImageProcessorPil(), (336, 336), None, "not made of tiles of 224x224; correct image_grid_pinpoints"),
        (LlavaNextImageProcessorPil(image_grid_pinpoints=[]), (336, 336), None, "shown on a canvas of no size"),
        (
            LlavaNextImageProcessorPil(size={"shortest_edge": 336}),
            (336, 336),
            None,
            "size {'shortest_edge': 336} and crop_size {'height': 224, 'width': 224}; supported are squares",
        ),
        (LlavaOnevisionImageProcessorPil(size={"height": 8, "width": 9}), (8, 9), None, "supported are squares"),
        (Idefics3ImageProcessorPil(), (28, 28), "square", "fit 'square' gives no fixed size to Idefics3ImageProcessor"),
        (GotOcr2ImageProcessorPil(do_resize=False), (8, 8), None, "resizes nothing .do_resize.; use .* 384x384"),
        (GotOcr2ImageProcessorPil(size={"shortest_edge": 8}), (8, 8), None, "supported: height and width"),
        (Idefics3ImageProcessorPil(size={"shortest_edge": 8}), (8, 8), None, "both need longest_edge"),
        (Qwen2VLImageProcessorPil(size={"height": 28, "width": 28}), (56, 56), None, "needs shortest_edge and longest"),
    ],
)
def test_bad_settings_are_refused(processor: Any, bucket: Size, fit: str | None, message: str) -> None:
    with pytest.raises(BadModel, match=message) as told:
        preprocess(processor, SUPPORTED, bucket, fit)
    assert "\n" not in str(told.value)


def test_several_images_of_onevision_are_not_fitted() -> None:
    with pytest.raises(BadModel, match="padded to squares by this model, not fitted by 'crop'"):
        preprocess(LlavaOnevisionImageProcessorPil(), SEVERAL, (384, 384), "crop")
