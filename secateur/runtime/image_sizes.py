# SPDX-License-Identifier: Apache-2.0
"""Image sizes of a bundle: a chain and preprocessing steps for each size, and the choice of the size for an image."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.preprocess import Size
from secateur.bundle.reader import Bundle
from secateur.errors import InputError, UnknownName
from secateur.runtime.backends.base import Backend
from secateur.runtime.chain import Chain
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import Fitted, fitted, pixel_values


@dataclass(frozen=True)
class Prepared:
    """Preprocessed images of one prompt: their size, pixel values [I,...], and how they were fitted."""

    size: str
    pixels: NDArray[np.float32]
    fitted: tuple[Fitted, ...]
    milliseconds: float


class ImageSizes:
    """A chain and preprocessing steps for each image size, WIDTHxHEIGHT.

    schedules  names of the schedules whose gates are loaded; None loads all
    """

    def __init__(self, bundle: Bundle, backend: Backend, schedules: Sequence[str] | None) -> None:
        buckets, lock = bundle.manifest.buckets, threading.Lock()
        self._images = bundle.manifest.layout.images
        self._chains = {m.layout.size: Chain(m, backend, schedules, lock) for m in buckets}
        self._steps = dict(zip(self._chains, bundle.steps, strict=True))

    @property
    def sizes(self) -> tuple[str, ...]:
        """All image sizes."""
        return tuple(self._chains)

    @property
    def first(self) -> Chain:
        """The chain for the first image size."""
        return next(iter(self._chains.values()))

    def chain(self, size: str) -> Chain:
        """Return the chain for an image size."""
        return self._chains[size]

    def prepare(self, image: Any, image_size: str | None) -> Prepared:
        """Preprocess the images of one prompt, given as an image or a tuple of images.

        image_size  None: the size that fits the first image best, see `choose`

        Raises:
            BadImage: it is not an image.
            InputError: the number of images differs from that of the bundle.
            UnknownName: there is no such image size.
        """
        start = time.perf_counter()
        images = [load_image(i) for i in (image if isinstance(image, tuple) else (image,))]
        if len(images) != self._images:
            raise InputError(
                f"{len(images)} images in a prompt, the bundle was exported for {self._images}; give a tuple of "
                f"{self._images}, or export with --images {max(1, len(images))}"
            )
        if image_size is not None and image_size not in self._chains:
            raise UnknownName("image size", image_size, self._chains, "`secateur export --image-size` adds one.")
        sizes = {name: chain.manifest.layout.image_size for name, chain in self._chains.items()}
        size = image_size or choose((images[0].height, images[0].width), sizes)
        steps = self._steps[size]
        pixels = np.concatenate([pixel_values(i, steps) for i in images])
        how = tuple(fitted((i.height, i.width), steps) for i in images)
        return Prepared(size, pixels, how, (time.perf_counter() - start) * 1000)


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
