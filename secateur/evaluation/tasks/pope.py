# SPDX-License-Identifier: Apache-2.0
"""POPE (arXiv 2305.10355): questions whether an object is in the image; F1 of "yes", averaged over the categories.

Labels are yes and no. POPE has one file per category (coco_pope_random.json ...): give the folder as --data, or as
--answers to questions in LLaVA's layout. Answers are matched by image and question, since the question numbers of the
files overlap.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from secateur.bundle.user_files import Record, text, text_or_number, visible_files
from secateur.errors import InputError
from secateur.evaluation.datasets import folder, records
from secateur.evaluation.tasks.base import Array, Question, mean, ratio

CATEGORY = re.compile("random|popular|adversarial")


class Task(folder.FolderTask):
    metric = "f1"
    one_answer = True

    def question_records(self, path: Path) -> Iterator[tuple[str, Record]]:
        own = [path] if path.is_file() else visible_files(path, (".json",))
        own = [file for file in own if CATEGORY.search(file.stem) and file.suffix.lower() == ".json"]
        own = [] if path.is_dir() and visible_files(path, (".jsonl",)) else own  # LLaVA's layout, with --answers
        if not own:
            yield from super().question_records(path)
        for file in own:
            category = {"category": CATEGORY.findall(file.stem)[-1]}
            yield from ((where, category | record) for where, record in records.records(file))

    def identity(self, record: Record, where: str) -> str:
        return f"{super().identity(record, where)}\n{self.group(record)}"

    def score(self, question: Question, answer: str) -> float:
        return float(says_yes(answer) == (question.answers[0].lower() == "yes"))

    def metrics(self, scores: Array, weights: Array) -> dict[str, Array]:
        """Compute f1, and accuracy, precision, recall and yes_ratio over all questions."""
        yes = np.array([q.answers[0].lower() == "yes" for q in self.questions])
        said = np.where(scores > 0.5, yes, ~yes).astype(float)
        groups = np.array([q.group for q in self.questions])
        total, present = np.zeros(weights.shape[:-1]), np.zeros(weights.shape[:-1])
        for group in sorted(set(groups.tolist())):
            inside = weights * (groups == group)
            hit = inside @ (said * yes)
            there = (inside.sum(axis=-1) > 0).astype(float)
            total += there * ratio(2 * hit, inside @ said + inside @ yes)
            present += there
        hit = weights @ (said * yes)
        return {
            "f1": ratio(total, present),
            "accuracy": mean(scores, weights),
            "precision": ratio(hit, weights @ said),
            "recall": ratio(hit, weights @ yes),
            "yes_ratio": mean(said, weights),
        }

    def keys(self, record: Record, where: str) -> tuple[str, ...]:
        number = super().keys(record, where)
        if "image" not in record or "text" not in record:
            return number
        seen = text_or_number(record, where, "image"), folder.first_line(text(record, where, "text"))
        return ("\n".join(seen), *number)

    def checked(self, questions: list[Question]) -> list[Question]:
        for question in questions:
            if question.answers[0].lower() not in ("yes", "no"):
                raise InputError(f"{question.where}: the label is '{question.answers[0]}'; it must be yes or no")
        return questions


def says_yes(answer: str) -> bool:
    """Return whether POPE counts an answer as yes: its first sentence has neither "no" nor "not"."""
    words = re.findall(r"[a-z]+", answer.partition(".")[0].lower())
    return "no" not in words and "not" not in words
