# SPDX-License-Identifier: Apache-2.0
"""Calibration samples: an image and a question each, without answers."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from secateur.bundle.regular_file import LARGEST_LIST, read_text
from secateur.checkpoints.hub import DEMO
from secateur.errors import InputError
from secateur.runtime.image import check_header

QUESTION = "Describe the image."
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Sample:
    """`image` may be a file, which is read when it is encoded: hundreds of photographs would fill the memory."""

    image: Image.Image | Path
    question: str


def samples(source: str, path: Path | None, count: int, seed: int) -> list[Sample]:
    """Return `count` samples for the model `source`, chosen by `seed`.

    path  JSON-lines file with "image" (relative to the file) and "text" or "question" on each line; or a folder of
          images, each with the question "Describe the image."; None: generated scenes of the demo model

    Raises:
        InputError: there are too few samples, a line cannot be read, or a file is not an image.
    """
    if count < 1:
        raise InputError(f"the number of calibration samples is {count}; it must be at least 1")
    if path is None:
        if source != DEMO:
            raise InputError(f"model '{source}' needs --samples: a folder of images, or a .jsonl of image and text")
        from secateur.demo.scenes import samples as generate

        return [Sample(s.image, s.question) for s in generate("calibration", count, seed)]
    pairs = list(_pairs(path))
    if len(pairs) < count:
        raise InputError(f"{path} holds {len(pairs)} samples, fewer than {count}; lower --sample-count or add some")
    chosen = random.Random(seed).sample(pairs, count)
    for image, _ in chosen:
        check_header(image)
    return [Sample(image, question) for image, question in chosen]


def _pairs(path: Path) -> Iterator[tuple[Path, str]]:
    if not path.exists():
        raise InputError(f"samples {path} does not exist; give a folder of images or a .jsonl file")
    if path.is_dir():
        yield from ((p, QUESTION) for p in sorted(path.iterdir()) if p.suffix.lower() in SUFFIXES)
        return
    try:
        lines = read_text(path, LARGEST_LIST).splitlines()
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"samples {path} cannot be read: {problem}") from None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            yield path.parent / entry["image"], str(entry["text"] if "text" in entry else entry["question"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f'{path} line {number} is not {{"image": ..., "text": ...}}') from None
