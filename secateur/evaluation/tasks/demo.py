# SPDX-License-Identifier: Apache-2.0
"""Generated scenes that are not in the demo model's training data, scored by exact match; needs no data."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from secateur.demo.scenes import SceneSample, sample
from secateur.errors import InputError
from secateur.evaluation.tasks import base
from secateur.evaluation.tasks.base import Question, Source

QUESTIONS = 600
SPLIT = "test"


class Task(base.Task):
    """Equally many questions of each kind, each on its own scene, with digits by writers held out of training."""

    max_new_tokens = 4

    def read(self, source: Source) -> Sequence[Question]:
        for name in ("data", "answers", "images"):
            if getattr(source, name) is not None:
                raise InputError(f"--{name} cannot be used with --task demo, which makes its own questions")
        count = QUESTIONS if source.questions is None else source.questions
        return [_question(sample(SPLIT, i, source.seed), i, source.seed) for i in range(count)]

    def score(self, question: Question, answer: str) -> float:
        return float(answer.strip() == question.answers[0])


def _question(made: SceneSample, index: int, seed: int) -> Question:
    def load() -> Image.Image:
        return sample(SPLIT, index, seed).image  # generated again, to save memory

    name = str(index)
    return Question(name, f"scene {index}", name, load, made.question, (made.answer,), made.kind, name)
