# SPDX-License-Identifier: Apache-2.0
"""Largest sizes that a bundle may declare. They are compared before anything of that size is made."""

from __future__ import annotations

from collections.abc import Mapping

from secateur.errors import BadBundle

MOST_ROWS = 1 << 18
"""Rows of a prompt before the question, images included."""
MOST_POSITION = (1 << 31) - 1
MOST_LAYERS = 1024
MOST_ELEMENTS = 1 << 28
"""Product of the fixed dimensions of a tensor."""
MOST_RANK = 8
MOST_LISTED = {"graphs": 4096, "schedules": 1024, "files": 1 << 16, "image sizes": 256}
"""Entries of the lists of a manifest."""
DIMENSIONS = {
    "layers": MOST_LAYERS,
    "width": 1 << 17,
    "heads": 1 << 12,
    "kv_heads": 1 << 12,
    "head_dim": 1 << 14,
    "mlp_width": 1 << 20,
    "vocabulary": 1 << 24,
    "context": 1 << 30,
    "vision_width": 1 << 20,
    "planes": MOST_LAYERS,
}


def check_sizes(where: str, sizes: Mapping[str, int], most: int | Mapping[str, int], least: int = 0) -> None:
    """Check that sizes are from `least` to `most`, which may differ by name.

    Raises:
        BadBundle: one is not; names it, the value and the bounds.
    """
    for name, size in sizes.items():
        bound = most if isinstance(most, int) else most[name]
        if not least <= size <= bound:
            raise BadBundle(f"{where}{name} is {size}; it must be from {least} to {bound}")
