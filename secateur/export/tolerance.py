# SPDX-License-Identifier: Apache-2.0
"""Allowed differences between two runs of a graph, after an export and between two backends."""

from __future__ import annotations

from typing import NamedTuple

from secateur.bundle.manifest import Manifest


class Tolerance(NamedTuple):
    """Upper bounds.

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
