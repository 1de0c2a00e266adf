# SPDX-License-Identifier: Apache-2.0
"""How far a graph may be from another run of it, after an export and between two backends."""

from __future__ import annotations

from secateur.artifacts import Manifest

TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}
ROUNDED_ROWS = 3e-2
"""Where the activations of integer weights are rounded to 8 bits (accuracy level 4)."""


def tolerance(manifest: Manifest) -> float:
    """Largest difference that passes, as a share of the largest magnitude in an output."""
    rounded = manifest.quantisation is not None and manifest.quantisation.accuracy_level
    return max(TOLERANCE[manifest.dtype], ROUNDED_ROWS if rounded else 0.0)
