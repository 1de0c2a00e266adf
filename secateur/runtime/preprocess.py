# SPDX-License-Identifier: Apache-2.0
"""Convert an image to pixel values with numpy and Pillow, as transformers' PIL image processors do (preprocess.json).

    image [H,W,3] -- fit --> canvas -- resize, crop --> whole -- tiles --> views -- rescale, normalize --> pixel values

Pixels are uint8 up to the views. Padding has the color `fill` and is normalized like the image.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secateur.bundle.preprocess import BLACK, MAX_PIXELS, PROCESSOR, Color, Preprocess, Size, Tile, Window, resized
from secateur.errors import BadImage

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Fitted:
    """How an image was fitted to its canvas, for a receipt.

    bucket   (height, width) of the canvas
    scale    canvas pixels per image pixel, vertical and horizontal
    padding  rows above and below, columns left and right of the image on the canvas; negative: cropped
    fit      one of FITS, or PROCESSOR
    """

    bucket: Size
    scale: tuple[float, float]
    padding: tuple[int, int, int, int]
    fit: str = PROCESSOR


@dataclass(frozen=True)
class CanvasPlace:
    """Place of an image resized to `size`, with its upper left corner at (top, left) of a canvas; it may overhang."""

    size: Size
    top: int
    left: int
    canvas: Size


def pixel_values(image: Image.Image, steps: Preprocess) -> NDArray[np.float32]:
    """Return the pixel values [1, *steps.pixels] of an RGB image.

    Raises:
        BadImage: it is so long and narrow that it would be too large after resizing.
    """
    seen = views(image, steps)
    table = _table(steps)
    values = np.empty((len(seen), 3, *seen[0].shape[:2]), np.float32)
    for view, planes in zip(seen, values, strict=True):
        for channel in range(3):
            np.take(table[channel], view[..., channel], out=planes[channel], mode="clip")
    return values[None] if steps.tiles else values


def _table(steps: Preprocess) -> NDArray[np.float32]:
    """Return the pixel value of each level of each channel [3,256].

    As in transformers, levels are rescaled in double precision (1/255 is inexact in single precision) and normalized in
    single precision.
    """
    levels = np.arange(256, dtype=np.float64) * (1.0 if steps.rescale is None else steps.rescale)
    table = np.tile(levels.astype(np.float32), (3, 1))
    if steps.mean is not None and steps.std is not None:
        table -= np.array(steps.mean, np.float32)[:, None]
        table /= np.array(steps.std, np.float32)[:, None]
    return table


def views(image: Image.Image, steps: Preprocess) -> list[Pixels]:
    """Return the views [h,w,3] of an RGB image, before rescaling and normalization.

    Raises:
        BadImage: as for `pixel_values`.
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
    """Fit, resize and crop an RGB image; the tiles are taken from the result.

    Raises:
        BadImage: as for `pixel_values`.
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
        image = Image.fromarray(cut(np.asarray(image), center((image.height, image.width), steps.crop)))
    return image


def fitted(size: Size, steps: Preprocess) -> Fitted:
    """Describe how `whole_image` fits an image of height and width `size`."""
    spot = place(size, steps.fit, steps.canvas) if steps.fit is not None else None
    canvas, shown = (spot.canvas, spot.size) if spot else (size, size)
    before = (spot.top, spot.left) if spot else (0, 0)
    final = canvas if steps.resize is None else resized(*canvas, steps.resize)
    starts = (0, 0) if steps.crop is None else center(final, steps.crop)[:2]
    bucket = final if steps.crop is None else steps.crop
    scales, padding = [], []
    for axis in (0, 1):
        grown = final[axis] / canvas[axis]
        ahead = round(before[axis] * grown) - starts[axis]
        scales.append(shown[axis] / size[axis] * grown)
        padding += [ahead, bucket[axis] - ahead - round(shown[axis] * grown)]
    edges = (padding[0], padding[1], padding[2], padding[3])
    return Fitted(bucket, (scales[0], scales[1]), edges, steps.fit or PROCESSOR)


def center(size: Size, crop: Size) -> Window:
    """Return the center window of an image of height and width `size`.

    As in transformers, an odd row is cut at the bottom, or added at the top.
    """
    return (size[0] - crop[0]) // 2, (size[1] - crop[1]) // 2, *crop


def cut(pixels: Pixels, window: Window, fill: Color = BLACK) -> Pixels:
    """Return a window [height,width,3] of pixels [H,W,3]; the part outside of the image has the color `fill`."""
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


def place(size: Size, how: str, canvas: Size | None) -> CanvasPlace:
    """Return the place of an image of height and width `size`; `how` is one of FITS, and "square" has no canvas.

    An odd row is padded or cut at the bottom.
    """
    height, width = size
    if canvas is None:
        edge = max(size)
        return CanvasPlace(size, (edge - height) // 2, (edge - width) // 2, (edge, edge))
    if how == "stretch":
        return CanvasPlace(canvas, 0, 0, canvas)
    by_height = canvas[0] * width <= canvas[1] * height  # the canvas is wider than the image
    if how == "crop":
        by_height = not by_height
    if by_height:
        size = (canvas[0], max(1, _divide(width * canvas[0], height)))
    else:
        size = (max(1, _divide(height * canvas[1], width)), canvas[1])
    top, left = (int((have - want) / 2) for have, want in zip(canvas, size, strict=True))
    return CanvasPlace(size, top, left, canvas)


def _divide(dividend: int, divisor: int) -> int:
    """Divide and round to the nearest integer, halves up."""
    return (2 * dividend + divisor) // (2 * divisor)


def fit(image: Image.Image, how: str, canvas: Size | None, resample: Image.Resampling, fill: Color) -> Image.Image:
    """Return an RGB image on its canvas.

    Raises:
        BadImage: it is so long and narrow that the square around it would be too large.
    """
    spot = place((image.height, image.width), how, canvas)
    (height, width), (rows, columns) = spot.size, spot.canvas
    if rows * columns > MAX_PIXELS:
        raise BadImage(
            f"an image of {image.width} x {image.height} would be padded to {columns} x {rows}, more than "
            f"{MAX_PIXELS} pixels; crop it to a less extreme shape"
        )
    if how == "crop":  # only the visible part is resized: the whole could be huge
        down, across = image.height / height, image.width / width
        box = (-spot.left * across, -spot.top * down, (columns - spot.left) * across, (rows - spot.top) * down)
        inside = (max(0.0, box[0]), max(0.0, box[1]), min(box[2], image.width), min(box[3], image.height))
        return image.resize((columns, rows), resample, box=inside)
    image = image.resize((width, height), resample)
    if spot.size == spot.canvas:
        return image
    sheet = Image.new("RGB", (columns, rows), fill)
    sheet.paste(image, (spot.left, spot.top))
    return sheet
