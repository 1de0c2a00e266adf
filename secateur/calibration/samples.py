# SPDX-License-Identifier: Apache-2.0
"""Calibration samples: an image and a question each, without answers."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from secateur.bundle.user_files import json_lines, text, visible_files
from secateur.checkpoints.hub import DEMO
from secateur.errors import BadImage, InputError
from secateur.runtime.image import check_header

QUESTION = "Describe the image."
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Sample:
    """`image` may be a file, which is read when it is encoded: hundreds of photographs would fill the memory.

    where  file and line, for messages
    """

    image: Image.Image | Path
    question: str
    where: str = "a sample"


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
    given = list(_given(path))
    if len(given) < count:
        raise InputError(f"{path} holds {len(given)} samples, fewer than {count}; lower --sample-count or add some")
    chosen = random.Random(seed).sample(given, count)
    for sample in chosen:
        _check_header(sample)
    return chosen


def _check_header(sample: Sample) -> None:
    assert isinstance(sample.image, Path)
    try:
        check_header(sample.image)
    except BadImage as problem:
        raise BadImage(str(problem) if sample.where == str(sample.image) else f"{sample.where}: {problem}") from None


def _given(path: Path) -> Iterator[Sample]:
    if not path.exists():
        raise InputError(f"samples {path} does not exist; give a folder of images or a .jsonl file")
    if path.is_dir():
        yield from (Sample(image, QUESTION, str(image)) for image in visible_files(path, SUFFIXES))
        return
    for where, record in json_lines(path):
        yield Sample(path.parent / text(record, where, "image"), text(record, where, "text", "question"), where)
