# SPDX-License-Identifier: Apache-2.0
"""How far a graph may be from another run of it, after an export and between two backends."""

from __future__ import annotations

from typing import NamedTuple

from secateur.bundle.manifest import Manifest


class Tolerance(NamedTuple):
    """What passes.

    values  largest difference, as a share of the largest magnitude in an output
    kept    share of other tokens that the gates of a whole chain may keep: scores that are close change places
    """

    values: float
    kept: float


TOLERANCE = {"fp32": Tolerance(1e-4, 0.0), "fp16": Tolerance(3e-2, 0.25), "bf16": Tolerance(2e-1, 0.5)}
ROUNDED_ROWS = TOLERANCE["fp16"]
"""At least, where the activations of integer weights are rounded to 8 bits (accuracy level 4)."""


def tolerance(manifest: Manifest) -> Tolerance:
    """The bounds of a bundle."""
    rounded = manifest.quantization is not None and manifest.quantization.accuracy_level
    return max(TOLERANCE[manifest.dtype], ROUNDED_ROWS) if rounded else TOLERANCE[manifest.dtype]
