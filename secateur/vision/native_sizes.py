# SPDX-License-Identifier: Apache-2.0
"""Sizes of an image that a model takes as they are: one (LLaVA), or many (Qwen-VL), with the nearest to any other."""

from __future__ import annotations

import math

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from secateur.bundle.preprocess import MAX_PIXELS, Size
from secateur.errors import BadModel

MAX_RATIO = 200
"""transformers refuses longer and narrower images."""


def shown(size: Size) -> str:
    """As --image-size takes it: WIDTHxHEIGHT, while `size` is (height, width)."""
    return f"{size[1]}x{size[0]}"


def only(wanted: Size | None, own: Size) -> Size:
    """`own`, the one size that the model takes.

    Raises:
        BadModel: another one is wanted.
    """
    if wanted not in (None, own):
        raise BadModel(f"this model takes images of {shown(own)} only; leave out --image-size")
    return own


def check_native(size: Size, unit: int, bounds: tuple[int, int] | None) -> None:
    """Check that the processor leaves an image of height and width `size` as it is.

    Args:
        unit: pixels on the edge of a vision token.
        bounds: lowest and highest number of pixels; None: the processor resizes nothing.

    Raises:
        BadModel: it would resize or refuse the image; the message names up to two sizes near by.
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
    """Sizes of multiples of `unit` around `size`, scaled so that they have `least` to `most` pixels where possible."""
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
    """The next multiple of `unit`, at least one."""
    return max(unit, math.ceil(length / unit) * unit)


def _apart(size: Size, wanted: Size) -> tuple[float, float, Size]:
    factors = [abs(math.log(have / want)) for have, want in zip(size, wanted, strict=True)]
    return max(factors), sum(factors), size
