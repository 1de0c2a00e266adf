# SPDX-License-Identifier: Apache-2.0
"""Image sizes that a model accepts without resizing: one (LLaVA) or many (Qwen-VL)."""

from __future__ import annotations

import math

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from secateur.bundle.preprocess import MAX_PIXELS, Size
from secateur.errors import BadModel

MAX_RATIO = 200
"""Highest ratio of an image's sides that transformers accepts."""


def shown(size: Size) -> str:
    """Return WIDTHxHEIGHT, the form of --image-size, of a (height, width)."""
    return f"{size[1]}x{size[0]}"


def only(wanted: Size | None, own: Size) -> Size:
    """Return `own`, the only size that the model accepts.

    Raises:
        BadModel: another size is requested.
    """
    if wanted not in (None, own):
        raise BadModel(f"this model takes images of {shown(own)} only; leave out --image-size")
    return own


def check_native(size: Size, unit: int, bounds: tuple[int, int] | None) -> None:
    """Check that the processor does not resize an image of `size`, (height, width).

    Args:
        unit: edge of a vision token in pixels.
        bounds: lowest and highest number of pixels; None: the processor resizes nothing.

    Raises:
        BadModel: it would resize or refuse the image; the message lists up to two of the nearest sizes.
    """

    def kept(size: Size) -> bool:
        if min(size) < unit or size[0] % unit or size[1] % unit:
            return False
        if bounds is None:
            return True
        return max(size) <= MAX_RATIO * min(size) and smart_resize(*size, unit, *bounds) == size

    if kept(size):
        return
    found = sorted(filter(kept, _near(size, unit, *(bounds or (0, MAX_PIXELS)))), key=lambda near: _apart(near, size))
    limits = "" if bounds is None else f", of {bounds[0]} to {bounds[1]} pixels, no side over {MAX_RATIO} x the other"
    raise BadModel(
        f"image size {shown(size)} is not one that the model keeps: sizes are multiples of {unit}{limits}"
        f"{'; the nearest: ' + ', '.join(map(shown, found[:2])) if found else ''}"
    )


def _near(size: Size, unit: int, least: int, most: int) -> set[Size]:
    """Return sizes of multiples of `unit` around `size`, scaled to `least` to `most` pixels where possible."""
    scale = math.sqrt(min(max(size[0] * size[1], least), most) / (size[0] * size[1]))
    found = set()
    for axis in (0, 1):
        for first in _around(size[axis] * scale, unit):
            lowest = round_up(max(least / first, first / MAX_RATIO), unit)
            highest = min(most // first, MAX_RATIO * first) // unit * unit
            for other in _around(size[1 - axis] * scale, unit):
                second = min(max(other, lowest), highest)
                found.add((second, first) if axis else (first, second))
    return found


def _around(length: float, unit: int) -> Size:
    return max(unit, math.floor(length / unit) * unit), round_up(length, unit)


def round_up(length: float, unit: int) -> int:
    """Round up to a multiple of `unit`, at least `unit`."""
    return max(unit, math.ceil(length / unit) * unit)


def _apart(size: Size, wanted: Size) -> tuple[float, float, Size]:
    factors = [abs(math.log(have / want)) for have, want in zip(size, wanted, strict=True)]
    return max(factors), sum(factors), size
