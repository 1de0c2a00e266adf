# SPDX-License-Identifier: Apache-2.0
"""What a task is: questions about images, a score for one answer, and metrics over all of them.

To add one, write secateur/evaluation/tasks/<name>.py with `class Task(base.Task)`, or on `_folder.FolderTask` for
questions in a JSON-lines file.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secateur.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Source:
    """Where a task's questions come from.

    data       JSON-lines file of questions, or the folder that holds it
    answers    file (or folder, if the task says so) with the reference answers; None where `data` has them
    images     folder of the images; None looks beside the questions and in "images" there
    questions  how many, chosen by `seed`; None takes all, or as many as the task finds sensible
    """

    data: Path | None = None
    answers: Path | None = None
    images: Path | None = None
    questions: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.questions is not None and self.questions < 1:
            raise InputError(f"--questions is {self.questions}; it must be at least 1")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is {self.seed}; it must be within 0 and {2**32 - 1}")


@dataclass(frozen=True)
class Question:
    """One question about one image.

    where    file and line, for messages
    picture  name of the image; `load` reads its pixels, so that a list of questions holds none; questions about one
             picture are resampled together
    answers  right answers
    group    kind of question, on which the score is told apart; "" for none
    unit     questions of one unit, which are about one picture, are kept or left out together when some are chosen
    options  text of each choice by its letter, in order
    """

    id: str
    where: str
    picture: str
    load: Callable[[], Image.Image]
    prompt: str
    answers: tuple[str, ...]
    group: str = ""
    unit: str = ""
    options: Mapping[str, str] = field(default_factory=dict)


class Task(ABC):
    """Questions of one kind, and how their answers are scored.

    metric          name of the main metric, higher is better
    binary          an answer is right (1) or wrong (0), nothing between
    max_new_tokens  longest answer that makes sense
    """

    metric: ClassVar[str] = "accuracy"
    binary: ClassVar[bool] = True
    max_new_tokens: ClassVar[int] = 16

    def __init__(self, source: Source) -> None:
        """Read the questions, and of the images no more than the headers.

        Raises:
            InputError: a file or line is not as it should be, or there are fewer questions than asked for.
            BadImage: an image is missing, or is none; the message names the line.
        """
        self.questions: tuple[Question, ...] = tuple(self.read(source))

    @abstractmethod
    def read(self, source: Source) -> Sequence[Question]:
        """The questions that `source` asks for, at least one."""

    @abstractmethod
    def score(self, question: Question, answer: str) -> float:
        """0 for a wrong answer to 1 for a right one."""

    def metrics(self, scores: Array, weights: Array) -> dict[str, Array]:
        """Every metric of the task, the main one first.

        scores   [N], of the answers to `questions`
        weights  [..., N], how often each question counts; the metrics have the shape [...]
        """
        return {self.metric: mean(scores, weights)}

    @property
    def full_marks(self) -> float:
        """Largest value of the main metric."""
        return 1.0


def mean(scores: Array, weights: Array) -> Array:
    """Weighted mean over the last axis; 0 where all weights are 0."""
    return ratio(weights @ scores, weights.sum(axis=-1))


def ratio(above: Array, below: Array) -> Array:
    """above / below; 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) > 0)


def choose(questions: Sequence[Question], count: int | None, seed: int) -> list[Question]:
    """`count` of the questions in their order, whole units, drawn by `seed`; None takes all.

    Raises:
        InputError: there are fewer, or `count` would cut a unit.
    """
    if count is None:
        return list(questions)
    if count > len(questions):
        raise InputError(f"--questions is {count}, but there are {len(questions)}; lower it")
    sizes: dict[str, int] = {}
    for question in questions:
        sizes[question.unit] = sizes.get(question.unit, 0) + 1
    order = list(sizes)
    random.Random(seed).shuffle(order)
    chosen: set[str] = set()
    total = 0
    for unit in order:
        if total >= count:
            break
        chosen.add(unit)
        total += sizes[unit]
    if total != count:
        raise InputError(f"--questions is {count}, which cuts questions that belong together; {total} would do")
    return [question for question in questions if question.unit in chosen]
