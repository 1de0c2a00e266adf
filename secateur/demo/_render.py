# SPDX-License-Identifier: Apache-2.0
"""Pixels of a scene: smooth textured background, distractor blobs, and tinted handwritten digits."""

import math

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["COLORS", "SIZE", "background", "blob", "glyph", "paint"]

SIZE = 96  # pixels, width and height of a scene
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (232, 48, 40),
    "yellow": (240, 222, 50),
    "green": (52, 200, 60),
    "cyan": (60, 215, 225),
    "blue": (66, 96, 245),
    "purple": (190, 70, 220),
    "white": (245, 245, 245),
}

Pixels = npt.NDArray[np.float32]


def background(rng: np.random.Generator) -> Pixels:
    """Return float [96, 96, 3], 0 .. 255: two octaves of smooth, rather dark texture."""
    level = rng.uniform(45, 95)
    canvas = np.full((SIZE, SIZE, 3), level, dtype=np.float32)
    for cells, strength in ((4, 22.0), (11, 9.0)):
        grey = rng.normal(0, strength, (cells, cells, 1))
        tint = rng.normal(0, strength / 3, (cells, cells, 3))
        coarse = (grey + tint).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel]).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
            canvas[:, :, channel] += np.asarray(layer)
    return canvas


def glyph(digit: npt.NDArray[np.uint8], side: int, rng: np.random.Generator, strength: float = 1.0) -> Pixels:
    """Return the alpha mask float [side, side], 0 .. 1, of one 8x8 digit, slightly rotated, sheared and scaled.

    strength  factor of the deformation: 1 for the scenes of the demo, more for training
    """
    angle = math.radians(rng.uniform(-9, 9) * strength)
    shear = rng.uniform(-0.12, 0.12) * strength
    wide, high = rng.uniform(0.94, 1.06, 2) ** strength
    step = 8.0 / side
    cos, sin = math.cos(angle), math.sin(angle)
    # Output pixel -> position in the 8x8 source; the digit rotates about its center.
    a, b = step * cos / wide, step * (sin + shear) / wide
    d, e = -step * sin / high, step * cos / high
    middle = side / 2
    c, f = 4 - (a + b) * middle, 4 - (d + e) * middle
    source = Image.fromarray(digit.astype(np.float32) / 16.0)
    mask = source.transform((side, side), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BICUBIC)
    # Full ink from 80 % keeps thin strokes of a small digit legible.
    return np.clip(np.asarray(mask) * 1.25, 0.0, 1.0)


def blob(rng: np.random.Generator) -> tuple[Pixels, float, float]:
    """Return a soft filled ellipse as a distractor: alpha mask float [96, 96] and its center (x, y)."""
    x, y = rng.uniform(4, SIZE - 4, 2)
    long, short = rng.uniform(4.5, 9.0), rng.uniform(3.5, 6.0)
    angle = rng.uniform(0, math.pi)
    across = np.arange(SIZE, dtype=np.float32)[None, :] + 0.5 - x
    down = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5 - y
    u = (across * math.cos(angle) + down * math.sin(angle)) / long
    v = (down * math.cos(angle) - across * math.sin(angle)) / short
    mask = np.clip((1.0 - (u * u + v * v)) * 2.5, 0.0, 1.0) * rng.uniform(0.6, 0.95)
    return mask.astype(np.float32), float(x), float(y)


def paint(canvas: Pixels, mask: Pixels, color: str, left: int, top: int, rng: np.random.Generator) -> None:
    """Blend one tinted mask [h, w] into the canvas [96, 96, 3], in place."""
    tint = np.asarray(COLORS[color], dtype=np.float32) * rng.uniform(0.88, 1.04) + rng.normal(0, 5, 3)
    high, wide = mask.shape
    region = canvas[top : top + high, left : left + wide]
    region += (tint.astype(np.float32) - region) * mask[:, :, None]
