# SPDX-License-Identifier: Apache-2.0
"""Choose the image size for an image, and resize, pad or crop the image to its canvas."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from PIL import Image

from secateur.bundle.preprocess import MAX_PIXELS, PROCESSOR, Color, Size
from secateur.errors import BadImage


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


def choose(size: Size, buckets: Mapping[str, Size]) -> str:
    """Return the name of the bucket for an image of height and width `size`; it does not depend on the fit.

    The bucket with the largest share x match is chosen. `share` is the part of the canvas that the letterboxed image
    covers. `match` compares the image's area with the area it covers, smaller over larger: 1 at the original scale, 1/4
    at half the scale (detail is lost) and at twice the scale (tokens are wasted). Ties go to the smallest canvas, then
    the lowest, then the first name.
    """

    def rank(name: str) -> tuple[Fraction, int, Size, str]:
        canvas = buckets[name]
        scale = min(Fraction(canvas[0], size[0]), Fraction(canvas[1], size[1])) ** 2
        share = scale * size[0] * size[1] / (canvas[0] * canvas[1])
        return -share * min(scale, 1 / scale), canvas[0] * canvas[1], canvas, name

    return min(buckets, key=rank)
