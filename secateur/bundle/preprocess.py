# SPDX-License-Identifier: Apache-2.0
"""Preprocessing steps from an image to pixel values (preprocess.json)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image

Window = tuple[int, int, int, int]


BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Tile:
    """One view of an image: resized, one size after the other, then a window of it.

    resizes  (height, width) each
    window   (top, left, height, width); outside of the image it has the colour `fill`; None: the whole image
    """

    resizes: tuple[Size, ...] = ()
    window: Window | None = None
    fill: Colour = BLACK

    def __post_init__(self) -> None:
        for height, width in (*self.resizes, *([self.window[2:]] if self.window else [])):
            if min(height, width) < 1 or height * width > MAX_PIXELS:
                raise ValueError(f"a tile of {height} x {width} must have 1 to {MAX_PIXELS} pixels")
        _check_colour(self.fill)

    def size(self, whole: Size) -> Size:
        """(height, width) of the view of an image of the size `whole`."""
        return self.window[2:] if self.window else (self.resizes or (whole,))[-1]


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing steps in order; None skips a step.

    resize    (height, width) to resize to exactly, or (edge,) to bring the shortest edge to
    resample  Pillow's resampling filter: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming"
    crop      (height, width) of the centre crop
    rescale   factor on 0..255
    mean, std per RGB channel, after rescaling
    fit       how the image is brought onto the canvas, before all else: one of FITS
    canvas    (height, width) of the bucket; None for "square" and where nothing is fitted
    fill      colour of the canvas where there is no image
    tiles     the views, all of one size; empty: the whole image is the one view
    """

    resize: tuple[int, ...] | None
    resample: str
    crop: Size | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fit: str | None = None
    canvas: Size | None = None
    fill: Colour = BLACK
    tiles: tuple[Tile, ...] = ()

    def __post_init__(self) -> None:
        if self.resample.upper() not in Image.Resampling.__members__:
            raise ValueError(f"resample '{self.resample}' is no filter of Pillow")
        if self.resize is not None and (len(self.resize) not in (1, 2) or min(self.resize) < 1):
            raise ValueError(f"resize {self.resize} must be (edge,) or (height, width), at least 1")
        if self.crop is not None and (min(self.crop) < 1 or self.crop[0] * self.crop[1] > MAX_PIXELS):
            raise ValueError(f"crop {self.crop} must be at least 1 x 1, and at most {MAX_PIXELS} pixels")
        if self.rescale is not None and not 0 < self.rescale < math.inf:
            raise ValueError(f"rescale {self.rescale} must be a number above 0")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (
                len(values) != 3 or not all(map(math.isfinite, values)) or (name == "std" and 0 in values)
            ):
                raise ValueError(f"{name} {values} must be three numbers{', none of them 0' if name == 'std' else ''}")
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"fit '{self.fit}' is not known; use one of {', '.join(FITS)}")
        if (self.canvas is None) != (self.fit in (None, "square")):
            raise ValueError(
                f"fit {self.fit} with canvas {self.canvas}: letterbox, stretch and crop need one, else none"
            )
        if self.canvas is not None and (min(self.canvas) < 1 or self.canvas[0] * self.canvas[1] > MAX_PIXELS):
            raise ValueError(f"canvas {self.canvas} must have 1 to {MAX_PIXELS} pixels")
        _check_colour(self.fill)
        if self.tiles and self.whole is None:
            raise ValueError("tiles need a canvas or a fixed size; without one their number would depend on the image")
        if self.whole is not None and len({tile.size(self.whole) for tile in self.tiles}) > 1:
            raise ValueError("the tiles differ in size; the views of an image must have one size")

    @property
    def whole(self) -> Size | None:
        """(height, width) of the image from which the tiles are taken; None where it depends on the image."""
        if self.crop is not None:
            return self.crop
        if self.resize is not None and len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        if self.canvas is None:
            return (self.resize[0], self.resize[0]) if self.resize is not None and self.fit == "square" else None
        return self.canvas if self.resize is None else resized(*self.canvas, self.resize)

    @property
    def size(self) -> Size | None:
        """(height, width) of every view; None where it depends on the image."""
        whole = self.whole
        return whole if whole is None or not self.tiles else self.tiles[0].size(whole)

    @property
    def pixels(self) -> tuple[int, ...] | None:
        """Shape of one image's pixel values: (3, h, w), or (tiles, 3, h, w); None where it depends on the image."""
        if self.size is None:
            return None
        return (len(self.tiles), 3, *self.size) if self.tiles else (3, *self.size)


def resized(height: int, width: int, size: tuple[int, ...]) -> Size:
    """(height, width) after resizing to `size`: exact, or by the shortest edge with the longer one rounded down."""
    if len(size) == 2:
        return size[0], size[1]
    short, long = size[0], int(size[0] * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def _check_colour(fill: Colour) -> None:
    if len(fill) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in fill):
        raise ValueError(f"fill {fill} must be three whole numbers of 0 to 255")


MAX_PIXELS = 64_000_000
"""No step makes an image larger than this."""


Size = tuple[int, int]


Colour = tuple[int, int, int]


FITS = ("letterbox", "stretch", "crop", "square")
"""Ways to bring an image onto a canvas; all but "square" take the canvas of a bucket.

letterbox  keep the shape, fill the canvas in one direction, pad the other on both sides
stretch    resize to the canvas, whatever the shape
crop       keep the shape, fill the canvas in both directions, cut off what overhangs on both sides
square     keep the size, pad the shorter edge on both sides; the canvas is as large as the longer edge
"""


PROCESSOR = "processor"
"""No fit: only the steps of the model's own processor are applied."""
