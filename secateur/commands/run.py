# SPDX-License-Identifier: Apache-2.0
"""Ask a bundle a question about an image.

secateur run build/demo-btp --image scene.png --prompt "what color is the seven ?"
"""

from __future__ import annotations

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import Any

from rich.console import Console

from secateur.bundle.sampling import GREEDY, Sampling
from secateur.terminal import tables

TEXTS = ("question", "answer")
"""Fields of the result that are shown whole, with their lines; control characters in them are escaped too."""
HELP = "ask a bundle a question about an image"


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--image", required=True, nargs="+", help="image files, as many as a prompt of the bundle has")
    parser.add_argument("--image-size", help="one of the bundle, WIDTHxHEIGHT (default: the best for the image)")
    parser.add_argument("--prompt", required=True, help="question about the image")
    parser.add_argument("--schedule", help="schedule (default: the only one besides full)")
    parser.add_argument("--backend", default="ort", help="ort, openvino, torch, trt or rtx (default: ort)")
    parser.add_argument(
        "--device", help="cpu or cuda for ort and torch; cpu, gpu or npu for openvino (default: cpu; trt, rtx: cuda)"
    )
    parser.add_argument("--model", help="checkpoint, for the backend torch (default: where the bundle came from)")
    parser.add_argument("--threads", type=int, help="threads of the backend (default: all cores)")
    parser.add_argument("--guard", action="store_true", help="stop at the first graph and row with values out of range")
    parser.add_argument("--repeat", type=int, default=1, help="ask this many times, time the last one (default: 1)")
    group = parser.add_argument_group("answer (default: the settings of the checkpoint, see secateur inspect)")
    group.add_argument("--ignore-generation-config", action="store_true", help="leave out the checkpoint's settings")
    hints = typing.get_type_hints(Sampling)
    for setting in dataclasses.fields(Sampling):
        if note := setting.metadata.get("help"):
            flag, several = "--" + setting.name.replace("_", "-"), hints[setting.name] == tuple[str, ...]
            kind = str if several else hints[setting.name]
            group.add_argument(flag, type=kind, nargs="+" if several else None, default=argparse.SUPPRESS, help=note)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from secateur.errors import InputError
    from secateur.runtime import Pipeline

    if arguments.repeat < 1:
        raise InputError(f"--repeat is {arguments.repeat}; it must be at least 1")
    names = [setting.name for setting in dataclasses.fields(Sampling)]
    options: Any = {name: getattr(arguments, name) for name in names if hasattr(arguments, name)}
    with Pipeline.load(
        arguments.bundle,
        backend=arguments.backend,
        threads=arguments.threads,
        device=arguments.device,
        schedules=[arguments.schedule] if arguments.schedule else None,
        guard=arguments.guard,
        model=arguments.model,
    ) as vlm:
        for _ in range(arguments.repeat):
            answer = vlm.ask(
                tuple(arguments.image),
                arguments.prompt,
                schedule=arguments.schedule,
                image_size=arguments.image_size,
                sampling=GREEDY if arguments.ignore_generation_config else None,
                **options,
            )
    return {
        "question": arguments.prompt,
        "answer": answer.text,
        "tokens": list(answer.tokens),
        "kept": [list(indices) for indices in answer.kept],
        "receipt": answer.receipt.as_dict(),
    }


def _fitted(image: dict[str, Any]) -> str:
    """Return how an image was fitted to the canvas."""
    down, across = image["scale"]
    top, bottom, left, right = image["padding"]
    scaled = f"scaled by {down:.3g}" if f"{down:.3g}" == f"{across:.3g}" else f"scaled by {across:.3g} x {down:.3g}"
    shown = f", padded by {top}, {bottom} rows and {left}, {right} columns" if any(image["padding"]) else ""
    way = "fitted by its processor" if image["fit"] == "processor" else image["fit"]
    return f"{way}, {scaled}{shown}"


def _indented(text: str) -> str:
    """Indent the further lines of a text, so that none of them looks like a line of ours."""
    return text.replace("\n", "\n" + " " * 10)


def show(result: dict[str, Any], console: Console) -> None:
    receipt = result["receipt"]
    console.print(f"question  {_indented(result['question'])}", soft_wrap=True)
    console.print(f"answer    {_indented(result['answer'])}", soft_wrap=True, style="bold")
    gates = tables.receipt(receipt["gates"])
    console.print(f"schedule  {receipt['schedule']} ({gates})", markup=False, soft_wrap=True)
    padding = "; ".join(_fitted(image) for image in receipt["images"])
    console.print(f"image     {receipt['image_size']}; {padding}", markup=False, soft_wrap=True)
    console.print(f"settings  {tables.settings(receipt['sampling'])}", markup=False, soft_wrap=True)
    rows = " -> ".join(str(rows) for rows in receipt["segment_rows"])
    console.print(f"rows      {rows} through {len(receipt['segment_rows'])} segments; ", end="")
    console.print(f"cache {receipt['cache_bytes'] / 1024:.0f} KiB; {receipt['generated_tokens']} tokens generated")
    stages = tables.table("Time", "stage", "ms")
    for stage, milliseconds in receipt["milliseconds"].items():
        stages.add_row(stage, f"{milliseconds:.2f}")
    console.print(stages)
