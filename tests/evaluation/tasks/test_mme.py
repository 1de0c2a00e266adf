# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.errors import InputError
from secateur.evaluation.tasks.base import Source
from secateur.evaluation.tasks.mme import Task

Write = Callable[..., Source]
ASK = "\nAnswer the question using a single word or phrase."


def pair(category: str, image: str, answers: bool = True) -> list[dict[str, Any]]:
    """Return two questions with the same question_id, as in LLaVA's file."""
    record = {"question_id": f"{category}/{image}", "image": f"{category}/{image}", "category": category}
    return [
        record | {"text": f"Is it {word}?{ASK}"} | ({"answer": answer} if answers else {})
        for word, answer in (("good", "Yes"), ("bad", "No"))
    ]


def test_scores_are_accuracy_plus_accuracy_of_pairs(folder: Write) -> None:
    task = Task(folder([*pair("count", "1.png"), *pair("count", "2.png"), *pair("code_reasoning", "1.png")]))
    answers = ["Yes", "No.", "yes it is", "Yes", "I cannot say", "no"]
    scores = np.array([task.score(q, a) for q, a in zip(task.questions, answers, strict=True)])
    assert scores.tolist() == [1, 1, 1, 0, 0, 1]
    found = {k: float(v) for k, v in task.metrics(scores, np.ones(6)).items()}
    # count: 3 of 4 and 1 of 2 pairs; code_reasoning: 1 of 2 and none.
    assert found == {
        "score": 75 + 50 + 50,
        "perception": 125,
        "cognition": 50,
        "accuracy": pytest.approx(4 / 6),
        "accuracy_plus": pytest.approx(1 / 3),
        "accuracy.code_reasoning": 0.5,
        "accuracy_plus.code_reasoning": 0,
        "accuracy.count": 0.75,
        "accuracy_plus.count": 0.5,
    }
    twice = task.metrics(scores, np.array([[2.0, 2, 1, 1, 0, 0]]))
    assert twice["score"][0] == pytest.approx(100 * 5 / 6 + 100 * 2 / 3)
    assert task.full_marks == 400


def test_pairs_are_chosen_together(folder: Write) -> None:
    records = [record for i in range(6) for record in pair("count", f"{i}.png")]
    task = Task(folder(records, questions=4))
    assert len({q.unit for q in task.questions}) == 2
    with pytest.raises(InputError, match="--questions is 3, which splits questions that belong together; use 4"):
        Task(folder(records, questions=3))
    with pytest.raises(InputError, match=r"image 'count/0.png' has 1 questions; MME has 2"):
        Task(folder(records[1:]))
    with pytest.raises(InputError, match="line 3 repeats question_id 'count/0.png'"):
        Task(folder([*records[:2], records[0]]))
    with pytest.raises(InputError, match='line 1 has no "category"'):
        Task(folder([{k: v for k, v in records[0].items() if k != "category"}]))


def test_answers_from_mme_s_own_folder(folder: Write, tmp_path: Path) -> None:
    gold = tmp_path / "MME"
    for place in (gold / "count", gold / "OCR" / "questions_answers_YN"):
        place.mkdir(parents=True)
        lines = "Is it good?  Please answer yes or no.\tYes\nIs it bad? Please answer yes or no.\tNo\n"
        (place / "1.txt").write_text(lines)
    task = Task(folder([*pair("count", "1.png", False), *pair("OCR", "1.png", False)], answers=gold))
    assert [q.answers for q in task.questions] == [("Yes",), ("No",)] * 2
    with pytest.raises(InputError, match=r"line 1 has 2 answers; --task mme takes one"):
        Task(folder([record | {"answers": ["yes", "no"]} for record in pair("count", "1.png", False)]))
    (gold / "count" / "1.txt").write_text("Is it good? Yes\n")
    with pytest.raises(InputError, match=r"1.txt line 1 is not a question, a tab and its answer"):
        Task(folder(pair("count", "1.png", False), answers=gold))
    (gold / "count" / "1.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"1.txt is not UTF-8"):
        Task(folder(pair("count", "1.png", False), answers=gold))
