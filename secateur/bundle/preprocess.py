# SPDX-License-Identifier: Apache-2.0
"""Preprocessing steps from an image to pixel values (preprocess.json)."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

Size = tuple[int, int]
Color = tuple[int, int, int]
Window = tuple[int, int, int, int]
BLACK = (0, 0, 0)
MAX_PIXELS = 64_000_000
"""Maximum number of pixels after any step."""
LARGEST_FACTOR = 1e6
"""Of rescale, mean and std."""
FITS = ("letterbox", "stretch", "crop", "square")
"""Ways to fit an image to a canvas; "square" makes its own canvas, the others use that of a bucket.

letterbox  keep the aspect ratio, fill the canvas in one direction, pad the other on both sides
stretch    resize to the canvas, without keeping the aspect ratio
crop       keep the aspect ratio, fill the canvas in both directions, cut both sides of the longer one
square     keep the size, pad the shorter edge on both sides; the canvas has the length of the longer edge
"""
PROCESSOR = "processor"
"""No fit: only the steps of the model's own processor."""


@dataclass(frozen=True)
class Tile:
    """A view of an image: a window of the image after one or more resizes.

    resizes  (height, width) of each resize, in order
    window   (top, left, height, width); None: the whole image
    fill     color of the window outside of the image
    """

    resizes: tuple[Size, ...] = ()
    window: Window | None = None
    fill: Color = BLACK

    def __post_init__(self) -> None:
        for height, width in (*self.resizes, *([self.window[2:]] if self.window else [])):
            if min(height, width) < 1 or height * width > MAX_PIXELS:
                raise ValueError(f"a tile of {height} x {width} must have 1 to {MAX_PIXELS} pixels")
        _check_color(self.fill)

    def size(self, whole: Size) -> Size:
        """Return (height, width) of the view for an image of size `whole`."""
        return self.window[2:] if self.window else (self.resizes or (whole,))[-1]


@dataclass(frozen=True)
class Preprocess:
    """Preprocessing steps in order; None skips a step.

    resize    (height, width) of the result, or (edge,) for its shortest edge
    resample  Pillow's resampling filter: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming"
    crop      (height, width) of the center crop
    rescale   factor for levels 0 to 255
    mean, std per RGB channel, after rescaling
    fit       how the image is fitted to the canvas, before all other steps: one of FITS
    canvas    (height, width) of the bucket; None for "square" and without `fit`
    fill      color of the canvas outside of the image
    tiles     views, all of one size; (): the whole image is the only view
    """

    resize: tuple[int, ...] | None
    resample: str
    crop: Size | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    fit: str | None = None
    canvas: Size | None = None
    fill: Color = BLACK
    tiles: tuple[Tile, ...] = ()

    def __post_init__(self) -> None:
        if self.resample.upper() not in Image.Resampling.__members__:
            raise ValueError(f"resample '{self.resample}' is not a filter of Pillow")
        if self.resize is not None and (len(self.resize) not in (1, 2) or min(self.resize) < 1):
            raise ValueError(f"resize {self.resize} must be (edge,) or (height, width), at least 1")
        if self.resize is not None and max(self.resize) * min(self.resize) > MAX_PIXELS:
            raise ValueError(f"resize {self.resize} must have at most {MAX_PIXELS} pixels")
        if self.crop is not None and (min(self.crop) < 1 or self.crop[0] * self.crop[1] > MAX_PIXELS):
            raise ValueError(f"crop {self.crop} must be at least 1 x 1, and at most {MAX_PIXELS} pixels")
        if self.rescale is not None and not 0 < self.rescale <= LARGEST_FACTOR:
            raise ValueError(f"rescale {self.rescale} must be a number above 0, at most {LARGEST_FACTOR}")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        for name, values in (("mean", self.mean), ("std", self.std)):
            least = 1 / LARGEST_FACTOR if name == "std" else 0
            if values is not None and (
                len(values) != 3 or not all(least <= abs(value) <= LARGEST_FACTOR for value in values)
            ):
                raise ValueError(f"{name} {values} must be three numbers of {least} to {LARGEST_FACTOR}")
        if self.fit is not None and self.fit not in FITS:
            raise ValueError(f"fit '{self.fit}' is not known; use one of {', '.join(FITS)}")
        if (self.canvas is None) != (self.fit in (None, "square")):
            raise ValueError(
                f"fit {self.fit} with canvas {self.canvas}: letterbox, stretch and crop need a canvas, others have none"
            )
        if self.canvas is not None and (min(self.canvas) < 1 or self.canvas[0] * self.canvas[1] > MAX_PIXELS):
            raise ValueError(f"canvas {self.canvas} must have 1 to {MAX_PIXELS} pixels")
        _check_color(self.fill)
        made = {tile.resizes[:n] for tile in self.tiles for n in range(1, 1 + len(tile.resizes))}
        sizes = [*(resizes[-1] for resizes in made), *(tile.window[2:] for tile in self.tiles if tile.window)]
        if (pixels := sum(height * width for height, width in sizes)) > MAX_PIXELS:
            raise ValueError(f"the tiles have {pixels} pixels in all, the most is {MAX_PIXELS}")
        if self.tiles and self.whole is None:
            raise ValueError("tiles need a canvas or a fixed size, so that their number does not depend on the image")
        if self.whole is not None and len({tile.size(self.whole) for tile in self.tiles}) > 1:
            raise ValueError("the tiles differ in size; all views of an image must have the same size")

    @property
    def whole(self) -> Size | None:
        """(height, width) of the image that the tiles are taken from; None if it depends on the image."""
        if self.crop is not None:
            return self.crop
        if self.resize is not None and len(self.resize) == 2:
            return self.resize[0], self.resize[1]
        if self.canvas is None:
            return (self.resize[0], self.resize[0]) if self.resize is not None and self.fit == "square" else None
        return self.canvas if self.resize is None else resized(*self.canvas, self.resize)

    @property
    def size(self) -> Size | None:
        """(height, width) of every view; None if it depends on the image."""
        whole = self.whole
        return whole if whole is None or not self.tiles else self.tiles[0].size(whole)

    @property
    def pixels(self) -> tuple[int, ...] | None:
        """Shape of the pixel values of one image: (3, h, w) or (tiles, 3, h, w); None if it depends on the image."""
        if self.size is None:
            return None
        return (len(self.tiles), 3, *self.size) if self.tiles else (3, *self.size)


def resized(height: int, width: int, size: tuple[int, ...]) -> Size:
    """Return (height, width) after resizing to `size`, see `Preprocess.resize`; the longer edge is rounded down."""
    if len(size) == 2:
        return size[0], size[1]
    short, long = size[0], int(size[0] * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def _check_color(fill: Color) -> None:
    if len(fill) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in fill):
        raise ValueError(f"fill {fill} must be three integers from 0 to 255")
