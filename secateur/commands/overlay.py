# SPDX-License-Identifier: Apache-2.0
"""Draw the image, then one panel per gate with dropped patches dimmed (at most three gates).

secateur overlay build/demo-btp --image scene.png --prompt "..." --out kept.png
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.errors import InputError

HELP = "draw which patches each gate keeps"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--prompt", required=True, help="question about the image")
    parser.add_argument("--schedule", help="schedule (default: the only one besides full)")
    parser.add_argument("--out", type=Path, required=True, help="output image, such as kept.png")
    parser.add_argument("--force", action="store_true", help="replace the output image")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from PIL import Image

    from secateur.bundle.atomic import check_file_free, write_bytes
    from secateur.evaluation.gate_pictures import overlay, place, why_no_grid
    from secateur.runtime import Pipeline
    from secateur.runtime.image import load_image
    from secateur.runtime.preprocess import whole_image

    if arguments.out.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"--out {arguments.out} is not an image file; give a name such as kept.png")
    check_file_free(arguments.out, arguments.force)
    with Pipeline.load(arguments.bundle) as vlm:
        bundle = vlm.bundle
        if reason := next((why for each in bundle.manifest.buckets if (why := why_no_grid(each.layout))), None):
            raise InputError(f"kept tokens cannot be drawn: {reason}; use a bundle with one grid")
        answer = vlm.ask(arguments.image, arguments.prompt, schedule=arguments.schedule)
    number = vlm.image_sizes.index(answer.receipt.image_size)
    seen = whole_image(load_image(arguments.image), bundle.steps[number])
    places = [place(gate.kind, gate.layer) for gate in answer.receipt.gates]
    drawn, data = overlay(seen, bundle.manifest.buckets[number].layout.grid, answer.kept, places), io.BytesIO()
    drawn.save(data, Image.registered_extensions()[arguments.out.suffix.lower()])
    write_bytes(arguments.out, data.getvalue())
    return {"prompt": arguments.prompt, "text": answer.text, "out": str(arguments.out)}


def show(result: dict[str, Any], console: Console) -> None:
    console.print(f"{result['prompt']} {result['text']}; wrote {result['out']}", markup=False, soft_wrap=True)
