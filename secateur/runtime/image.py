# SPDX-License-Identifier: Apache-2.0
"""Load an image from a file, a PIL image or an array, as an upright RGB image."""

from __future__ import annotations

import os
import warnings
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from secateur.errors import BadImage, first_line

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any]"


def load_image(source: ImageLike) -> Image.Image:
    """Return the RGB image of a file, a PIL image or a uint8 array [H,W,3], [H,W,4] or [H,W].

    The EXIF rotation is applied. Transparent pixels are blended with white, as in transformers. 16-bit pixels are
    scaled to 8 bits (transformers clips them).

    Raises:
        BadImage: it is missing, a folder, damaged, not an image, or too large; the message says which.
    """
    if isinstance(source, np.ndarray):
        return _upright(_from_array(source), "the image")
    if isinstance(source, Image.Image):
        return _upright(source, "the image")
    if not isinstance(source, str | os.PathLike):
        raise BadImage(f"an image is a path, a PIL image or a numpy array, not a {type(source).__name__}")
    path = os.fspath(source)
    with _opened(path) as image:
        return _upright(image, f"image {path}")


def check_header(path: str | os.PathLike[str]) -> None:
    """Check the header of an image file without reading its pixels; only `load_image` detects damaged pixel data.

    Raises:
        BadImage: it is missing, a folder, not an image, or too large; the message says which.
    """
    with _opened(os.fspath(path)):
        pass


def _opened(path: str) -> Image.Image:
    """Open an image file; its pixels are read later."""
    if not os.path.exists(path):
        raise BadImage(f"image {path} does not exist; give the path of an image file")
    if not os.path.isfile(path):
        raise BadImage(f"image {path} is not a file; give the path of an image file")
    if os.path.getsize(path) == 0:
        raise BadImage(f"image {path} is empty (0 bytes); give an image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return Image.open(path)
    except Exception as problem:
        raise _bad(f"image {path}", problem) from None


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise BadImage(f"an image array is uint8 [H,W,3], not {array.dtype} {list(array.shape)}")
    if array.size == 0:
        raise BadImage(f"the image array {list(array.shape)} has no pixels")
    return Image.fromarray(np.ascontiguousarray(array))


def _upright(image: Image.Image, name: str) -> Image.Image:
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise _bad(name, Image.DecompressionBombError(f"{image.width} x {image.height} pixels, the limit is {limit}"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rgb = _to_rgb(ImageOps.exif_transpose(image))
    except BadImage as problem:
        raise BadImage(f"{name}: {problem}") from None
    except Exception as problem:
        raise _bad(name, problem) from None
    if 0 in rgb.size:
        raise BadImage(f"{name} has no pixels ({rgb.width} x {rgb.height})")
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip every value above 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise BadImage("it has 32 bits per pixel and no known value range; convert it to 8 or 16 bits")
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _bad(name: str, problem: Exception) -> BadImage:
    """Return a one-line error; Pillow's decoders raise many types of exceptions on damaged data."""
    if isinstance(problem, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return BadImage(f"{name} is too large to be decoded safely: {first_line(problem)}; scale it down")
    if isinstance(problem, UnidentifiedImageError):
        return BadImage(f"{name} is not an image that Pillow can read; give a PNG, JPEG, WebP, ... file")
    return BadImage(f"{name} cannot be decoded, it may be damaged: {first_line(problem)}")
