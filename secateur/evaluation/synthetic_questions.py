# SPDX-License-Identifier: Apache-2.0
"""Plain questions about made pictures, for a model that no task is known of."""

from __future__ import annotations

import numpy as np
from PIL import Image

from secateur.bundle.manifest import Manifest
from secateur.evaluation.tasks.base import Question
from secateur.export.examples import noise

PROMPTS = (
    "what is in the picture ?",
    "how many objects are there ?",
    "is there a person ?",
    "what is on the left ?",
    "which colors are there ?",
)


def questions(manifest: Manifest, count: int) -> list[Question]:
    """`count` questions without an answer, each about a picture of its own; the same at every call."""
    return [_question(manifest, number) for number in range(count)]


def _question(manifest: Manifest, number: int) -> Question:
    def load() -> Image.Image:
        values = noise((3, *manifest.layout.image_size), np.random.default_rng(number)).transpose(1, 2, 0)
        return Image.fromarray((127.5 + 50 * values).clip(0, 255).astype(np.uint8))

    return Question(str(number), f"made picture {number}", str(number), load, PROMPTS[number % len(PROMPTS)], ())
