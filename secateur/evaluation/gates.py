# SPDX-License-Identifier: Apache-2.0
"""How pictures speak of gates: where each one stands, and which ones are drawn."""

from __future__ import annotations

from secateur.bundle.layout import Layout
from secateur.bundle.manifest import Manifest

SHOWN = 3
"""Gates drawn of a schedule that has more: the first, the middle one and the last."""
IN_FRONT = {"vision": "encoder", "downsample": "smaller image"}  # of the decoder: these have no layer


def place(kind: str, layer: int) -> str:
    """ "layer 4", or where a gate of this kind stands in the encoder."""
    return IN_FRONT.get(kind, f"layer {layer}")


def shown_gates(count: int) -> list[int]:
    """Numbers of the gates to draw: all, or SHOWN of them spread from the first to the last."""
    return list(range(count)) if count <= SHOWN else [i * (count - 1) // (SHOWN - 1) for i in range(SHOWN)]


def no_grid(layout: Layout) -> str:
    """Why what gates keep cannot be laid over a picture as one grid; "" if it can."""
    if len(layout.views) == 1:
        return ""
    return f"a prompt has {len(layout.views)} views, each with a grid of its own"


def no_pictures(manifest: Manifest) -> str:
    """The same for a report, whose pictures all have the same grid."""
    if manifest.others:
        return f"the bundle has {len(manifest.buckets)} image sizes, each with a grid of its own"
    return no_grid(manifest.layout)
