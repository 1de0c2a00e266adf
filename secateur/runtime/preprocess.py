# SPDX-License-Identifier: Apache-2.0
"""Image to pixel values with numpy and Pillow, as transformers' PIL image processors do (preprocess.json)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secateur.errors import BadImage

MAX_PIXELS = 64_000_000


@dataclass(frozen=True)
class Preprocess:
    """The steps in order; None leaves a step out.

    resize    (height, width) to resize to exactly, or (edge,) to bring the shortest edge to
    resample  Pillow's resampling filter: "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming"
    crop      (height, width) of the centre crop
    rescale   factor on 0..255
    mean, std per RGB channel, after rescaling
    """

    resize: tuple[int, ...] | None
    resample: str
    crop: tuple[int, int] | None
    rescale: float | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None

    def __post_init__(self) -> None:
        if self.resample.upper() not in Image.Resampling.__members__:
            raise ValueError(f"resample '{self.resample}' is no filter of Pillow")
        if self.resize is not None and (len(self.resize) not in (1, 2) or min(self.resize) < 1):
            raise ValueError(f"resize {self.resize} must be (edge,) or (height, width), at least 1")
        if self.crop is not None and min(self.crop) < 1:
            raise ValueError(f"crop {self.crop} must be at least 1 x 1")
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and (len(values) != 3 or (name == "std" and 0 in values)):
                raise ValueError(f"{name} {values} must be three numbers{', none of them 0' if name == 'std' else ''}")

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of every result; None where it depends on the image."""
        if self.crop is not None:
            return self.crop
        return (self.resize[0], self.resize[1]) if self.resize is not None and len(self.resize) == 2 else None


def pixel_values(image: Image.Image, steps: Preprocess) -> NDArray[np.float32]:
    """Pixel values [1,3,H,W] of an RGB image.

    Raises:
        BadImage: so long and narrow that its resized form would not fit into memory.
    """
    if steps.resize is not None:
        height, width = resized(image.height, image.width, steps.resize)
        if height * width > MAX_PIXELS:
            raise BadImage(
                f"an image of {image.width} x {image.height} would be resized to {width} x {height}, more than "
                f"{MAX_PIXELS} pixels; crop it to a less extreme shape"
            )
        image = image.resize((width, height), resample=Image.Resampling[steps.resample.upper()])
    pixels = np.asarray(image)
    if steps.crop is not None:
        pixels = center_crop(pixels, *steps.crop)
    # In double precision up to here, as transformers does: 1/255 is not exact in single precision.
    factor = 1.0 if steps.rescale is None else steps.rescale
    values: NDArray[np.float32] = (pixels.astype(np.float64) * factor).astype(np.float32)
    if steps.mean is not None and steps.std is not None:
        values -= np.array(steps.mean, np.float32)
        values /= np.array(steps.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def resized(height: int, width: int, size: tuple[int, ...]) -> tuple[int, int]:
    """(height, width) after resizing to `size`: exact, or by the shortest edge with the longer one rounded down."""
    if len(size) == 2:
        return size[0], size[1]
    short, long = size[0], int(size[0] * max(height, width) / min(height, width))
    return (long, short) if width <= height else (short, long)


def center_crop(pixels: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """The middle [height,width,3] of [H,W,3]; where the image is smaller, black rows and columns around it.

    An odd row is taken above and added above, as transformers does.
    """
    result = np.zeros((height, width, pixels.shape[2]), pixels.dtype)
    target, source = [], []
    for have, want in zip(pixels.shape[:2], (height, width), strict=True):
        start = (have - want) // 2
        target.append(slice(max(0, -start), max(0, -start) + min(have, want)))
        source.append(slice(max(0, start), max(0, start) + min(have, want)))
    result[tuple(target)] = pixels[tuple(source)]
    return result
