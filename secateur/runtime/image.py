# SPDX-License-Identifier: Apache-2.0
"""Load an image from a file, a PIL image or an array, as an upright RGB image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from secateur.bundle.preprocess import MAX_PIXELS
from secateur.bundle.regular_file import open_regular
from secateur.errors import BadImage, first_line

ImageLike: TypeAlias = "str | os.PathLike[str] | Image.Image | NDArray[Any]"

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Formats that are read. Pillow knows many more; EPS, for one, it gives to Ghostscript, which runs programs."""
LARGEST_FILE = 512 << 20
"""Bytes of an image file."""
STRIP_PIXELS = 1 << 20
"""Pixels that are converted at a time, so that an image takes its own memory and that of the RGB image, not more."""
T = Image.Transpose
UPRIGHT = {
    2: T.FLIP_LEFT_RIGHT, 3: T.ROTATE_180, 4: T.FLIP_TOP_BOTTOM,
    5: T.TRANSPOSE, 6: T.ROTATE_270, 7: T.TRANSVERSE, 8: T.ROTATE_90,
}  # fmt: skip
"""What undoes each EXIF orientation."""


def load_image(source: ImageLike) -> Image.Image:
    """Return the RGB image of a file, a PIL image or a uint8 array [H,W,3], [H,W,4] or [H,W].

    The EXIF rotation is applied. Transparent pixels are blended with white, as in transformers. 16-bit pixels are
    scaled to 8 bits (transformers clips them). A file must be in one of `FORMATS`. The most is 64 million pixels, which
    take up to 8 bytes each while they are converted.

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


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Open an image file; its pixels are read later, within the block."""
    if not os.path.exists(path):
        raise BadImage(f"image {path} does not exist; give the path of an image file")
    if not os.path.isfile(path):
        raise BadImage(f"image {path} is not a file; give the path of an image file")
    if os.path.getsize(path) == 0:
        raise BadImage(f"image {path} is empty (0 bytes); give an image file")
    with ExitStack() as stack:
        try:
            file = stack.enter_context(open_regular(path, LARGEST_FILE))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                image = stack.enter_context(Image.open(file, formats=FORMATS))
            _check_size(image)
        except Exception as problem:
            raise _bad(f"image {path}", problem) from None
        yield image


def _check_size(image: Image.Image) -> None:
    """Raise DecompressionBombError if an image has too many pixels."""
    limit = min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
    if image.width * image.height > limit:
        raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels, the limit is {limit}")


def _from_array(array: NDArray[Any]) -> Image.Image:
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise BadImage(f"an image array is uint8 [H,W,3], not {array.dtype} {list(array.shape)}")
    if array.size == 0:
        raise BadImage(f"the image array {list(array.shape)} has no pixels")
    return Image.fromarray(np.ascontiguousarray(array))


def _upright(image: Image.Image, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _check_size(image)
            rgb = _to_rgb(image)
            turn = UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
            rgb = rgb if turn is None else rgb.transpose(turn)
    except BadImage as problem:
        raise BadImage(f"{name}: {problem}") from None
    except Exception as problem:
        raise _bad(name, problem) from None
    if 0 in rgb.size:
        raise BadImage(f"{name} has no pixels ({rgb.width} x {rgb.height})")
    return rgb


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return an RGB image without transparency; strip by strip where a conversion has steps."""
    if image.mode in ("I", "F"):
        raise BadImage("it has 32 bits per pixel and no known value range; convert it to 8 or 16 bits")
    image.load()
    transparent = "A" in image.getbands() or image.info.get("transparency") is not None
    if not transparent and not image.mode.startswith("I;16"):
        return image.convert("RGB")
    rgb = Image.new("RGB", image.size)
    rows = max(1, STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        rgb.paste(_strip_to_rgb(strip), (0, top))
    return rgb


def _strip_to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):  # Pillow would clip every value above 255
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
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
        return BadImage(f"{name} is not an image that is read; give a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file")
    return BadImage(f"{name} cannot be decoded, it may be damaged: {first_line(problem)}")
