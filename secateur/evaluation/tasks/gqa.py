# SPDX-License-Identifier: Apache-2.0
"""Short answers by exact match, as GQA scores them (arXiv 1902.09506): lower case, without a final period.

Any of the reference answers is right. GQA's own file of questions, an object of id: {"imageId": ..., "question": ...,
"answer": ...}, can be given as --data or, for questions in another file, as --answers.
"""

from __future__ import annotations

from secateur.bundle.user_files import Record
from secateur.evaluation.datasets import folder
from secateur.evaluation.datasets.folder import SHORTLY
from secateur.evaluation.tasks.base import Question


class Task(folder.FolderTask):
    def score(self, question: Question, answer: str) -> float:
        return float(_plain(answer) in map(_plain, question.answers))

    def prompt(self, record: Record, where: str) -> str:
        asked = super().prompt(record, where)
        return f"{asked}\n{SHORTLY}" if "imageId" in record else asked

    def group(self, record: Record) -> str:
        types = record.get("types")  # {"structural": "verify", "semantic": "obj", ...}
        return str(types.get("structural", "")) if isinstance(types, dict) else super().group(record)


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").strip().lower()
