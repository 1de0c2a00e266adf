# SPDX-License-Identifier: Apache-2.0
"""Base class of evaluation tasks: questions about images, a score for one answer, and metrics over all of them.

To add one, write secateur/evaluation/tasks/<name>.py with `class Task(base.Task)`, or derive it from
`datasets.folder.FolderTask` for questions in a JSON-lines file.
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
    """Source of the questions of a task.

    data       JSON-lines file of questions, or the folder that holds it
    answers    file (for some tasks a folder) of reference answers; None if `data` has them
    images     folder of the images; None: the folder of the questions, or "images" in it
    questions  number of questions, chosen by `seed`; None takes all, or the task's default
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
    picture  name of the image, which `load` reads when needed; questions about one picture are resampled together
    answers  right answers
    group    kind of question, which is also scored separately; "" for none
    unit     questions of one unit, about one picture, are selected together
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
    """Questions of one kind, and the scoring of their answers.

    metric          name of the main metric, higher is better
    binary          a score is either 0 or 1
    max_new_tokens  most tokens of an answer
    """

    metric: ClassVar[str] = "accuracy"
    binary: ClassVar[bool] = True
    max_new_tokens: ClassVar[int] = 16

    def __init__(self, source: Source) -> None:
        """Read the questions, and only the headers of the images.

        Raises:
            InputError: a file or line is malformed, or there are fewer questions than requested.
            BadImage: an image is missing or damaged; the message names the line.
        """
        self.questions: tuple[Question, ...] = tuple(self.read(source))

    @abstractmethod
    def read(self, source: Source) -> Sequence[Question]:
        """Return the questions that `source` selects, at least one."""

    @abstractmethod
    def score(self, question: Question, answer: str) -> float:
        """Return the score of an answer, from 0 (wrong) to 1 (right)."""

    def metrics(self, scores: Array, weights: Array) -> dict[str, Array]:
        """Compute every metric of the task, the main one first.

        scores   [N], of the answers to `questions`
        weights  [..., N], how often each question counts; the metrics have the shape [...]
        """
        return {self.metric: mean(scores, weights)}

    @property
    def full_marks(self) -> float:
        """Largest value of the main metric."""
        return 1.0


def mean(scores: Array, weights: Array) -> Array:
    """Return the weighted mean over the last axis; 0 where all weights are 0."""
    return ratio(weights @ scores, weights.sum(axis=-1))


def ratio(above: Array, below: Array) -> Array:
    """Return above / below; 0 where below is 0."""
    return np.divide(above, below, out=np.zeros(np.shape(below)), where=np.asarray(below) > 0)


def choose(questions: Sequence[Question], count: int | None, seed: int) -> list[Question]:
    """Select `count` questions in their order, by whole units, at random by `seed`; None selects all.

    Raises:
        InputError: there are fewer questions, or `count` would split a unit.
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
        raise InputError(f"--questions is {count}, which splits questions that belong together; use {total}")
    return [question for question in questions if question.unit in chosen]
