# SPDX-License-Identifier: Apache-2.0
"""MME (arXiv 2306.13394): two yes-or-no questions per image; the sum of accuracy and accuracy+ of each category.

accuracy counts questions, accuracy+ images with both questions right, each in percent: 200 per category. MME's own
folder (CATEGORY/IMAGE.txt, a question, a tab and its answer on each line, with the images beside the texts or in
CATEGORY/images) can be given as --data, or as --answers to questions in LLaVA's layout.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from secateur.bundle.user_files import Record, read_text, text_or_number, visible_files
from secateur.errors import InputError
from secateur.evaluation.datasets import folder
from secateur.evaluation.tasks.base import Array, Question, mean

TEXTS, IMAGES = "questions_answers_YN", (".jpg", ".jpeg", ".png", ".webp", ".bmp")
COGNITION = ("code_reasoning", "commonsense_reasoning", "numerical_calculation", "text_translation")
PERCEPTION = ("OCR", "artwork", "celebrity", "color", "count", "existence", "landmark", "position", "posters", "scene")
INSTRUCTIONS = re.compile(r"please answer yes or no\.?|answer the question using a single word or phrase\.?", re.I)


class Task(folder.FolderTask):
    metric = "score"
    one_answer = True

    @property
    def full_marks(self) -> float:
        return 200.0 * len({q.group for q in self.questions})

    def score(self, question: Question, answer: str) -> float:
        """MME reads "yes" or "no" at the start of an answer; anything else is wrong."""
        start = answer.strip().lower()[:4]
        said = next((word for word in ("yes", "no") if word in start), None)
        return float(said == question.answers[0].lower())

    def metrics(self, scores: Array, weights: Array) -> dict[str, Array]:
        """Compute score, perception and cognition, and accuracy and accuracy_plus (0 to 1), also by category."""
        first, second = self._pairs()
        both = scores[first] * scores[second]
        groups = np.array([q.group for q in self.questions])
        sums = {name: np.zeros(weights.shape[:-1]) for name in ("score", "perception", "cognition")}
        parts = {"accuracy": mean(scores, weights), "accuracy_plus": mean(both, weights[..., first])}
        for group in sorted(set(groups.tolist())):
            inside = weights * (groups == group)
            parts |= {
                f"accuracy.{group}": mean(scores, inside),
                f"accuracy_plus.{group}": mean(both, inside[..., first]),
            }
            marks = 100 * (parts[f"accuracy.{group}"] + parts[f"accuracy_plus.{group}"])
            sums["score"] += marks
            for name, categories in (("perception", PERCEPTION), ("cognition", COGNITION)):
                if group in categories:
                    sums[name] += marks
        return sums | parts

    def _pairs(self) -> tuple[list[int], list[int]]:
        """Return the indices of the first and the second question of each image."""
        pairs: dict[str, list[int]] = {}
        for i, question in enumerate(self.questions):
            pairs.setdefault(question.unit, []).append(i)
        return [pair[0] for pair in pairs.values()], [pair[1] for pair in pairs.values()]

    def identity(self, record: Record, where: str) -> str:
        # Both questions of an image have its name as question_id.
        return f"{super().identity(record, where)}\n{_asked(self.prompt(record, where))}"

    def unit(self, record: Record, where: str) -> str:
        return f"{text_or_number(record, where, 'category')}/{text_or_number(record, where, 'image')}"

    def keys(self, record: Record, where: str) -> tuple[str, ...]:
        if "image" not in record:
            return super().keys(record, where)
        image = PurePosixPath(text_or_number(record, where, "image")).stem
        return (f"{text_or_number(record, where, 'category')}/{image}\n{_asked(self.prompt(record, where))}",)

    def answer_records(self, path: Path) -> Iterator[tuple[str, Record]]:
        texts = _texts(path)
        if not texts:
            yield from super().answer_records(path)
        for file in texts:
            yield from self._lines(file, _category(file, path))

    def question_records(self, path: Path) -> Iterator[tuple[str, Record]]:
        texts = _texts(path) if path.is_dir() and not visible_files(path, (".jsonl",)) else []
        if not texts:
            yield from super().question_records(path)
        for file in texts:
            category = _category(file, path)
            image = _image_of(file)
            for where, record in self._lines(file, category):
                own = {"question_id": f"{category}/{image.name}", "image": str(image.relative_to(path))}
                yield where, record | own

    def _lines(self, file: Path, category: str) -> Iterator[tuple[str, Record]]:
        for i, line in enumerate(read_text(file).split("\n"), start=1):
            question, tab, answer = line.strip().rpartition("\t")
            if line.strip() and not tab:
                raise InputError(f"{file} line {i} is not a question, a tab and its answer")
            if tab:
                yield (
                    f"{file} line {i}",
                    {
                        "question_id": file.stem,
                        "image": file.stem,
                        "category": category,
                        "text": question,
                        "answer": answer,
                    },
                )

    def checked(self, questions: list[Question]) -> list[Question]:
        counts: dict[str, int] = {}
        for question in questions:
            if question.answers[0].lower() not in ("yes", "no"):
                raise InputError(f"{question.where}: the answer is '{question.answers[0]}'; it must be yes or no")
            counts[question.unit] = counts.get(question.unit, 0) + 1
        for question in questions:
            if counts[question.unit] != 2:
                raise InputError(
                    f"{question.where}: image '{question.picture}' has {counts[question.unit]} questions; MME has 2"
                )
        return questions


def _texts(path: Path) -> list[Path]:
    return visible_files(path, (".txt",), deep=True) if path.is_dir() else []


def _category(file: Path, folder: Path) -> str:
    """Return the category of a file in MME's folder, or in the folder of one category."""
    first, *further = file.relative_to(folder).parts
    return folder.resolve().name if not further or first == TEXTS else first


def _image_of(file: Path) -> Path:
    """Return the image of a text: beside it, or in the folder `images` beside the texts."""
    beside = visible_files(file.parent, IMAGES)
    if file.parent.name == TEXTS and (file.parent.parent / "images").is_dir():
        beside += visible_files(file.parent.parent / "images", IMAGES)
    found = next((image for image in beside if image.stem == file.stem), None)
    if found is None:
        raise InputError(f"{file} has no image {file.stem}.jpg or .png, neither beside it nor in ../images; add it")
    return found


def _asked(prompt: str) -> str:
    """Return the question without the instructions, which differ between files."""
    return " ".join(INSTRUCTIONS.sub(" ", prompt).split())
