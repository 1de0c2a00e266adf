# SPDX-License-Identifier: Apache-2.0
"""A picture and a prompt that are made, for checks of a model that brings none."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from secateur.artifacts import Manifest
from secateur.runtime.bundle import Bundle
from secateur.runtime.rows import Rows

QUESTION_ROWS = 6


def smooth_noise(manifest: Manifest, rng: np.random.Generator) -> NDArray[np.float64]:
    """[1, C, h, w] as `vision` takes it, of order one; neighbouring patches are neither equal nor unrelated."""
    _, channels, height, width = (d if isinstance(d, int) else 1 for d in manifest.graph("vision").inputs[0].shape)
    noise = rng.normal(size=(1, channels, height // 4 + 1, width // 4 + 1)).repeat(4, axis=2).repeat(4, axis=3)
    return noise[:, :, :height, :width] + 0.3 * rng.normal(size=(1, channels, height, width))


def example(bundle: Bundle) -> tuple[NDArray[np.float32], Rows]:
    """Pixel values and prompt, the same at every call; the question keeps clear of special tokens, at either end."""
    manifest, prompt = bundle.manifest, bundle.prompt
    rng = np.random.default_rng(0)
    image = smooth_noise(manifest, rng).astype(np.float32)
    words = manifest.dimensions.vocabulary
    tail = rng.integers(words // 4, words // 2, QUESTION_ROWS).tolist()
    placeholders = [prompt.pad] * manifest.layout.vision_tokens
    return image, Rows.pad([[*prompt.head, *placeholders, *tail]], prompt.pad)
