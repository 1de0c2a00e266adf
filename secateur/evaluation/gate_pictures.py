# SPDX-License-Identifier: Apache-2.0
"""Pictures of what gates keep: names of the gates' places, which gates are drawn, and the drawing itself."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from secateur.bundle.layout import Layout
from secateur.bundle.manifest import Manifest

PANEL, GAP, CAPTION = 288, 12, 24
"""Pixels: side of a panel, space between panels, height of a caption."""
DIMMED = 0.22
"""Opacity of a dropped patch."""
SHOWN = 3
"""Most gates drawn per schedule: of more, the first, the middle one and the last."""
OUTSIDE_DECODER = {"vision": "encoder", "downsample": "smaller image"}
"""Place of each kind of gate that has no decoder layer."""


def place(kind: str, layer: int) -> str:
    """Return "layer 4", or the place of a gate outside the decoder."""
    return OUTSIDE_DECODER.get(kind, f"layer {layer}")


def shown_gates(count: int) -> list[int]:
    """Return the numbers of the gates to draw: all, or SHOWN of them spread from the first to the last."""
    return list(range(count)) if count <= SHOWN else [i * (count - 1) // (SHOWN - 1) for i in range(SHOWN)]


def why_no_grid(layout: Layout) -> str:
    """Return why kept tokens cannot be drawn over an image as one grid; "" if they can."""
    if len(layout.views) == 1:
        return ""
    return f"a prompt has {len(layout.views)} views, each with a grid of its own"


def why_no_pictures(manifest: Manifest) -> str:
    """Return why a report cannot show kept tokens, since all its images must share one grid; "" if it can."""
    if manifest.others:
        return f"the bundle has {len(manifest.buckets)} image sizes, each with a grid of its own"
    return why_no_grid(manifest.layout)


def overlay(
    image: Image.Image, grid: tuple[int, int], kept: Sequence[Sequence[int]], places: Sequence[str]
) -> Image.Image:
    """Draw the image, then one panel per shown gate in which dropped patches are dimmed.

    kept    original raster indices that each gate keeps
    places  name of each gate's place
    """
    every = range(grid[0] * grid[1])
    panels: list[tuple[str, Sequence[int]]] = [(f"{len(every)} tokens", every)]
    panels += [(f"{places[j]}: {len(kept[j])}", kept[j]) for j in shown_gates(len(kept))]
    size = (len(panels) * (PANEL + GAP) - GAP, PANEL + CAPTION)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    pixels = np.asarray(image.resize((PANEL, PANEL), Image.Resampling.LANCZOS), np.float32)
    for i, (caption, stay) in enumerate(panels):
        mask = np.full(grid[0] * grid[1], DIMMED, np.float32)
        mask[list(stay)] = 1
        cells = Image.fromarray(mask.reshape(grid)).resize((PANEL, PANEL), Image.Resampling.NEAREST)
        shown = pixels * np.asarray(cells)[:, :, None] + 255 * (1 - np.asarray(cells)[:, :, None])
        left = i * (PANEL + GAP)
        sheet.paste(Image.fromarray(shown.clip(0, 255).astype(np.uint8)), (left, CAPTION))
        draw.text((left + 2, 2), caption, fill="black", font=ImageFont.load_default(16))
    return sheet
