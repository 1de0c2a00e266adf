# SPDX-License-Identifier: Apache-2.0
"""How pictures speak of gates: where each one stands, and which ones are drawn."""

from __future__ import annotations

SHOWN = 3
"""Gates drawn of a schedule that has more: the first, the middle one and the last."""
IN_FRONT = {"vision": "encoder", "downsample": "smaller image"}  # of the decoder: these have no layer


def place(kind: str, layer: int) -> str:
    """ "layer 4", or where a gate of this kind stands in the encoder."""
    return IN_FRONT.get(kind, f"layer {layer}")


def shown_gates(count: int) -> list[int]:
    """Numbers of the gates to draw: all, or SHOWN of them spread from the first to the last."""
    return list(range(count)) if count <= SHOWN else [i * (count - 1) // (SHOWN - 1) for i in range(SHOWN)]
