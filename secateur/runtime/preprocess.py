# SPDX-License-Identifier: Apache-2.0
"""Image to pixel values with numpy and Pillow, as transformers' PIL image processors do (preprocess.json).

    image [H,W,3] -- fit --> canvas -- resize, crop --> whole -- tiles --> views -- rescale, normalise --> pixel values

All up to the views is uint8. Padding comes before the normalisation, so it has the colour that `fill` says.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secateur.errors import BadImage
from secateur.runtime.fitting import FITS, MAX_PIXELS, PROCESSOR, Colour, Fitted, Size, fit, place

Pixels = NDArray[np.uint8]
Window = tuple[int, int, int, int]
BLACK = (0, 0, 0)


@dataclass(frozen=True)
class Tile:
    """One view of an image: resized, one size after the other, then a window of it.

    resizes  (height, width) each
    window   (top, left, height, width); what lies outside of the image has the colour `fill`; None: all of it
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
    """The steps; None leaves a step out.

    resize    (height, width) to resize to exactly, or (edge,) to bring the shortest edge to
    resample  Pillow's resampling filter: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming"
    crop      (height, width) of the centre crop
    rescale   factor on 0..255
    mean, std per RGB channel, after rescaling
    fit       how the image is brought onto the canvas, before all else: one of fitting.FITS
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


def pixel_values(image: Image.Image, steps: Preprocess) -> NDArray[np.float32]:
    """Pixel values [1, *steps.pixels] of an RGB image.

    Raises:
        BadImage: so long and narrow that its resized form would not fit into memory.
    """
    seen = views(image, steps)
    table = _table(steps)
    values = np.empty((len(seen), 3, *seen[0].shape[:2]), np.float32)
    for view, planes in zip(seen, values, strict=True):
        for channel in range(3):
            np.take(table[channel], view[..., channel], out=planes[channel], mode="clip")
    return values[None] if steps.tiles else values


def _table(steps: Preprocess) -> NDArray[np.float32]:
    """[3,256]: the value of each level of each channel, in single precision from the normalisation on.

    The product is in double precision, as in transformers: 1/255 is not exact in single precision.
    """
    levels = np.arange(256, dtype=np.float64) * (1.0 if steps.rescale is None else steps.rescale)
    table = np.tile(levels.astype(np.float32), (3, 1))
    if steps.mean is not None and steps.std is not None:
        table -= np.array(steps.mean, np.float32)[:, None]
        table /= np.array(steps.std, np.float32)[:, None]
    return table


def views(image: Image.Image, steps: Preprocess) -> list[Pixels]:
    """The views [h,w,3] of an RGB image, as the model gets them but for the normalisation.

    Raises:
        BadImage: as `pixel_values`.
    """
    made: dict[tuple[Size, ...], Image.Image] = {(): whole_image(image, steps)}

    def after(resizes: tuple[Size, ...]) -> Image.Image:
        if resizes not in made:
            height, width = resizes[-1]
            made[resizes] = after(resizes[:-1]).resize((width, height), _filter(steps))
        return made[resizes]

    pixels = {resizes: np.asarray(after(resizes)) for resizes in {tile.resizes for tile in steps.tiles or (Tile(),)}}
    return [
        pixels[tile.resizes] if tile.window is None else cut(pixels[tile.resizes], tile.window, tile.fill)
        for tile in steps.tiles or (Tile(),)
    ]


def whole_image(image: Image.Image, steps: Preprocess) -> Image.Image:
    """An RGB image fitted, resized and cropped: what the tiles are taken from.

    Raises:
        BadImage: as `pixel_values`.
    """
    if steps.fit is not None:
        image = fit(image, steps.fit, steps.canvas, _filter(steps), steps.fill)
    if steps.resize is not None:
        height, width = resized(image.height, image.width, steps.resize)
        if height * width > MAX_PIXELS:
            raise BadImage(
                f"an image of {image.width} x {image.height} would be resized to {width} x {height}, more than "
                f"{MAX_PIXELS} pixels; crop it to a less extreme shape"
            )
        image = image.resize((width, height), _filter(steps))
    if steps.crop is not None and steps.crop != (image.height, image.width):
        image = Image.fromarray(cut(np.asarray(image), centre((image.height, image.width), steps.crop)))
    return image


def fitted(size: Size, steps: Preprocess) -> Fitted:
    """What becomes of an image of height and width `size` on its way to the whole from which the tiles are taken."""
    spot = place(size, steps.fit, steps.canvas) if steps.fit is not None else None
    canvas, shown = (spot.canvas, spot.size) if spot else (size, size)
    before = (spot.top, spot.left) if spot else (0, 0)
    final = canvas if steps.resize is None else resized(*canvas, steps.resize)
    starts = (0, 0) if steps.crop is None else centre(final, steps.crop)[:2]
    bucket = final if steps.crop is None else steps.crop
    scales, padding = [], []
    for axis in (0, 1):
        grown = final[axis] / canvas[axis]
        ahead = round(before[axis] * grown) - starts[axis]
        scales.append(shown[axis] / size[axis] * grown)
        padding += [ahead, bucket[axis] - ahead - round(shown[axis] * grown)]
    edges = (padding[0], padding[1], padding[2], padding[3])
    return Fitted(bucket, (scales[0], scales[1]), edges, steps.fit or PROCESSOR)


def resized(height: int, width: int, size: tuple[int, ...]) -> Size:
    """(height, width) after resizing to `size`: exact, or by the shortest edge with the longer one rounded down."""
    if len(size) == 2:
        return size[0], size[1]
    short, long = size[0], int(size[0] * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def centre(size: Size, crop: Size) -> Window:
    """The middle of an image of height and width `size`; an odd row is cut below, or added above.

    transformers does it this way.
    """
    return (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2, *crop


def cut(pixels: Pixels, window: Window, fill: Colour = BLACK) -> Pixels:
    """A window [height,width,3] of [H,W,3], `fill` where it overhangs."""
    starts, sizes = window[:2], window[2:]
    inside = [
        slice(max(0, start), max(0, min(have, start + want)))
        for start, want, have in zip(starts, sizes, pixels.shape, strict=False)
    ]
    part = pixels[tuple(inside)]
    if part.shape[:2] == sizes:
        return part
    result = np.full((*sizes, 3), fill, np.uint8)
    top, left = (max(0, -start) for start in starts)
    result[top : top + part.shape[0], left : left + part.shape[1]] = part
    return result


def _filter(steps: Preprocess) -> Image.Resampling:
    return Image.Resampling[steps.resample.upper()]


def _check_colour(fill: Colour) -> None:
    if len(fill) != 3 or not all(type(value) is int and 0 <= value <= 255 for value in fill):
        raise ValueError(f"fill {fill} must be three whole numbers of 0 to 255")
