# SPDX-License-Identifier: Apache-2.0
"""Short answers by exact match, as GQA scores them (arXiv 1902.09506): lower case, without a final period.

Any of the reference answers is right. GQA's own file of questions, an object of id: {"answer": ...}, can be given as
--answers.
"""

from __future__ import annotations

from secateur.evaluation.datasets import folder
from secateur.evaluation.tasks.base import Question


class Task(folder.FolderTask):
    def score(self, question: Question, answer: str) -> float:
        return float(_plain(answer) in map(_plain, question.answers))


def _plain(answer: str) -> str:
    return answer.strip().rstrip(".").strip().lower()
