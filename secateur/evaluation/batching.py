# SPDX-License-Identifier: Apache-2.0
"""Run the questions of a task on every schedule of a bundle: in batches for scores and overlays, singly for times.

All schedules answer a question before the next one starts, so a drift of the machine affects all equally.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from secateur.errors import BadImage, BadPrompt
from secateur.evaluation.results import Answered, Overlay
from secateur.evaluation.tasks.base import Question, Task
from secateur.progress import Progress
from secateur.runtime import Answer, Pipeline
from secateur.runtime.preprocess import whole_image
from secateur.runtime.sampling import SamplingOptions

BATCH = 25
WARM_UP = 2


@dataclass(frozen=True)
class Timed:
    """Part of a timed answer that is kept, see Receipt; the logits would fill the memory."""

    milliseconds: dict[str, float]
    cache_bytes: int


def check_prompts(vlm: Pipeline, task: Task, max_new_tokens: int) -> None:
    """Check that the bundle takes every question, before the first is asked.

    Raises:
        BadPrompt: a question is too long; the message names it.
    """
    for question in task.questions:
        try:
            vlm.check(question.prompt, max_new_tokens)
        except BadPrompt as problem:
            raise _named(problem, question) from None


def scores(
    vlm: Pipeline, task: Task, names: Sequence[str], max_new_tokens: int, batch: int, progress: Progress
) -> dict[str, NDArray[np.float64]]:
    """Return the score [N] of every question for each schedule; one batch of images is in memory."""
    found: dict[str, list[float]] = {name: [] for name in names}
    done, total = 0, len(task.questions) * len(names)
    for start in range(0, len(task.questions), batch):
        part = task.questions[start : start + batch]
        images = [_load(q) for q in part]
        for name in names:
            answers = ask(vlm, part, images, name, max_new_tokens)
            found[name] += [task.score(q, a.text) for q, a in zip(part, answers, strict=True)]
            done += len(part)
            progress("questions", name, done, total)
    return {name: np.array(values, np.float64) for name, values in found.items()}


def timed(
    vlm: Pipeline, questions: Sequence[Question], names: Sequence[str], progress: Progress
) -> dict[str, list[Timed]]:
    """Time the first token of each schedule at batch 1, after a warm-up; the order of the schedules rotates."""
    found: dict[str, list[Timed]] = {name: [] for name in names}
    total = len(questions) * len(names)
    for turn, question in enumerate([questions[0]] * WARM_UP + list(questions), start=-WARM_UP):
        images = [_load(question)]
        first = turn % len(names)
        for name in [*names[first:], *names[:first]]:
            (answer,) = ask(vlm, [question], images, name, 1)
            if turn >= 0:
                found[name].append(Timed(answer.timings, answer.receipt.cache_bytes))
                progress("timing", name, sum(map(len, found.values())), total)
    return found


def overlays(
    vlm: Pipeline, task: Task, names: Sequence[str], count: int, max_new_tokens: int, progress: Progress
) -> list[Overlay]:
    """Return the first `count` questions about different images, with the answers and kept tokens of each schedule."""
    by_picture: dict[str, Question] = {}
    for question in task.questions:
        by_picture.setdefault(question.picture, question)
    chosen = list(by_picture.values())[:count]
    if not chosen:
        return []
    images = [_load(q) for q in chosen]
    answers: list[dict[str, Answered]] = [{} for _ in chosen]
    for done, name in enumerate(names, start=1):
        for i, answer in enumerate(ask(vlm, chosen, images, name, max_new_tokens)):
            layers = tuple(gate.layer for gate in answer.receipt.gates)
            answers[i][name] = Answered(answer.text, task.score(chosen[i], answer.text), layers, answer.kept)
        progress("overlays", name, done, len(names))
    return [
        Overlay(whole_image(image, vlm.bundle.preprocess), q.prompt, " / ".join(dict.fromkeys(q.answers)), a)
        for image, q, a in zip(images, chosen, answers, strict=True)
    ]


def ask(
    vlm: Pipeline,
    questions: Sequence[Question],
    images: Sequence[Image.Image | tuple[Image.Image, ...]],
    schedule: str,
    max_new_tokens: int,
    image_size: str | None = None,
) -> list[Answer]:
    """Answer one batch, without random draws; images and options are those of Pipeline.ask.

    Other settings of the checkpoint are in force, such as its repetition penalty.

    Raises:
        BadPrompt, BadImage: as Pipeline.ask; the message names the question.
    """
    options: SamplingOptions = {"max_new_tokens": max_new_tokens, "temperature": 0.0}
    try:
        return vlm.ask(list(images), [q.prompt for q in questions], schedule, image_size=image_size, **options)
    except (BadPrompt, BadImage):
        for question, image in zip(questions, images, strict=True):  # find the question that failed
            try:
                vlm.ask(image, question.prompt, schedule, image_size=image_size, **options)
            except (BadPrompt, BadImage) as problem:
                raise _named(problem, question) from None
        raise


def _load(question: Question) -> Image.Image:
    try:
        return question.load()
    except BadImage as problem:
        raise _named(problem, question) from None


def _named(problem: BadPrompt | BadImage, question: Question) -> BadPrompt | BadImage:
    return type(problem)(f"question '{question.id}' ({question.where}): {problem}")
