# SPDX-License-Identifier: Apache-2.0
"""TextVQA (arXiv 1904.08920): accuracy against ten annotators.

Each annotator in turn is left out, and the answer scores 1/3 for every other annotator who gave it, at most 1; the
score is the mean of the ten. TextVQA's annotations (TextVQA_0.5.1_val.json) can be given as --answers. LLaVA uses the
name of the image as question_id, so questions are identified and matched by image and question.
"""

from __future__ import annotations

from secateur.errors import InputError
from secateur.evaluation.datasets import folder, records
from secateur.evaluation.datasets.records import Record
from secateur.evaluation.datasets.vqa import normalized
from secateur.evaluation.tasks.base import Question

ANNOTATORS = 10
HINT = "reference ocr token"


class Task(folder.FolderTask):
    binary = False

    def score(self, question: Question, answer: str) -> float:
        given = normalized(answer)
        same = [normalized(a) == given for a in question.answers]
        others = (sum(same) - one for one in same)
        return sum(min(1.0, n / 3) for n in others) / len(same)

    def identity(self, record: Record, where: str) -> str:
        return f"{super().identity(record, where)}\n{_asked(self.prompt(record, where))}"

    def keys(self, record: Record, where: str) -> tuple[str, ...]:
        number = records.text(record, where, "question_id", "id")
        if "image_id" in record:  # a record of the annotations
            number = records.text(record, where, "image_id")
        elif "text" not in record and "question" not in record:
            return (number,)
        return (f"{number}\n{_asked(self.prompt(record, where))}", number)

    def checked(self, questions: list[Question]) -> list[Question]:
        for question in questions:
            if len(question.answers) != ANNOTATORS:
                raise InputError(f"{question.where} has {len(question.answers)} answers; TextVQA has {ANNOTATORS}")
        return questions


def _asked(prompt: str) -> str:
    """Return the question without LLaVA's hint of OCR tokens, which comes before or after it."""
    lines = [line for line in prompt.splitlines() if not line.lower().startswith(HINT)]
    return folder.first_line("\n".join(lines)).lower()
