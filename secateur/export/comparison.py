# SPDX-License-Identifier: Apache-2.0
"""Synthetic inputs and allowed differences, to compare two runs of a bundle without data."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.manifest import Manifest
from secateur.bundle.prompt import Prompt
from secateur.runtime.decoder_inputs import TokenBatch

QUESTION_ROWS = 6


class Tolerance(NamedTuple):
    """Upper bounds of differences.

    values  largest difference, as a share of the largest magnitude in an output
    kept    share of the kept tokens that may differ in a whole chain, since tokens of close scores can swap
    """

    values: float
    kept: float


TOLERANCE = {"fp32": Tolerance(1e-4, 0.0), "fp16": Tolerance(3e-2, 0.25), "bf16": Tolerance(2e-1, 0.5)}
ROUNDED_ROWS = TOLERANCE["fp16"]
"""Lower limit of the tolerance where the activations of integer weights are rounded to 8 bits (accuracy level 4)."""


def tolerance(manifest: Manifest) -> Tolerance:
    """Return the tolerance of a bundle."""
    rounded = manifest.quantization is not None and manifest.quantization.accuracy_level
    return max(TOLERANCE[manifest.dtype], ROUNDED_ROWS) if rounded else TOLERANCE[manifest.dtype]


class Example(NamedTuple):
    """Pixel values [images, ...] and rows of one prompt."""

    pixels: NDArray[np.float32]
    rows: TokenBatch


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return noise [..., h, w] of order one in which neighboring values are correlated."""
    *views, height, width = shape
    coarse = rng.normal(size=(*views, height // 4 + 1, width // 4 + 1)).repeat(4, axis=-2).repeat(4, axis=-1)
    return coarse[..., :height, :width] + 0.3 * rng.normal(size=(*views, height, width))


def example(manifest: Manifest, prompt: Prompt) -> Example:
    """Return a prompt for the first image size, the same at every call; the question avoids special tokens."""
    rng = np.random.default_rng(0)
    shape = (d for d in manifest.vision.inputs[0].shape if isinstance(d, int))
    pixels = noise((manifest.layout.images, *shape), rng).astype(np.float32)
    words = manifest.dimensions.vocabulary
    question = rng.integers(words // 4, words // 2, QUESTION_ROWS).tolist()
    return Example(pixels, TokenBatch.prompt(manifest.layout, [question], prompt.pad))
