# SPDX-License-Identifier: Apache-2.0
"""A picture of what each gate kept: the image, then one panel a gate with the dropped patches dimmed.

Of more than three gates the first, the middle one and the last are shown.

python -m secateur.evaluation.overlay build/demo-btp --image scene.png --prompt "..." --out kept.png
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from secateur.cli import one_line
from secateur.errors import InputError
from secateur.evaluation.gates import no_grid, place, shown_gates
from secateur.runtime import Pipeline
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import whole_image

PANEL, GAP, CAPTION = 288, 12, 24
DIMMED = 0.22


def overlay(
    image: Image.Image, grid: tuple[int, int], kept: Sequence[Sequence[int]], places: Sequence[str]
) -> Image.Image:
    """Panels side by side; kept[j] are the original raster indices that stay behind the gate at places[j]."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", required=True)
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--schedule")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.out.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--out {arguments.out} is no picture; give a file such as kept.png")
    with Pipeline.load(arguments.bundle) as vlm:
        bundle = vlm.bundle
        if reason := next((why for each in bundle.manifest.buckets if (why := no_grid(each.layout))), None):
            raise InputError(f"there is no picture to draw: {reason}")
        answer = vlm.ask(arguments.image, arguments.prompt, schedule=arguments.schedule)
    number = vlm.image_sizes.index(answer.receipt.image_size)
    seen = whole_image(load_image(arguments.image), bundle.steps[number])
    places = [place(gate.kind, gate.layer) for gate in answer.receipt.gates]
    overlay(seen, bundle.manifest.buckets[number].layout.grid, answer.kept, places).save(arguments.out)
    print(f"{arguments.prompt} {answer.text}; wrote {arguments.out}")


if __name__ == "__main__":
    sys.exit(one_line(main))
