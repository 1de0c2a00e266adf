# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import InputError
from secateur.evaluation.tasks.base import Question, Source
from secateur.evaluation.tasks.textvqa import Task, normalized

Write = Callable[..., Source]
TASK = object.__new__(Task)


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("The Cat", "cat"),
        ("Two dogs.", "2 dogs"),
        ("none", "0"),
        ("3.5", "3.5"),
        ("St. Mary", "st mary"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("DAKOTA'S", "dakota 's"),
        ("1,000", "1000"),
        ("half-time", "half time"),
        ("half - time", "half time"),
        ("(red)", "red"),
        ("what?\n", "what"),
        (" a ", ""),
    ],
)
def test_normal_form(answer: str, form: str) -> None:
    assert normalized(answer) == form


@given(st.text(max_size=30))
def test_normal_form_has_no_extra_space(answer: str) -> None:
    form = normalized(answer)
    assert form == " ".join(form.split()) and form == normalized(answer.lower())


def plain(answer: str, annotators: list[str]) -> float:
    """Compute the accuracy by its definition."""
    each = []
    for left_out in range(len(annotators)):
        others = annotators[:left_out] + annotators[left_out + 1 :]
        each.append(min(1.0, sum(other == answer for other in others) / 3))
    return mean(each)


@given(st.lists(st.sampled_from(["red", "blue", "green"]), min_size=10, max_size=10), st.sampled_from(["red", "x"]))
def test_accuracy_equals_its_definition(annotators: list[str], answer: str) -> None:
    question = Question("1", "", "", lambda: None, "", tuple(annotators))  # type: ignore[arg-type, return-value]
    assert TASK.score(question, answer.upper() + ".") == pytest.approx(plain(answer, annotators))


def test_known_values() -> None:
    for votes, score in ((0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)):
        answers = ("red",) * votes + ("blue",) * (10 - votes)
        question = Question("1", "", "", lambda: None, "", answers)  # type: ignore[arg-type, return-value]
        assert TASK.score(question, "red") == pytest.approx(score)


def test_llava_s_questions_and_textvqa_s_annotations(folder: Write, tmp_path: Path) -> None:
    """In LLaVA's file question_id is the image, so two questions share it."""
    hint, ask = "Reference OCR token: A, B", "Answer the question using a single word or phrase."
    records = [
        {"question_id": "f00", "image": "f00.jpg", "text": f"What brand?\n{hint}\n{ask}"},
        {"question_id": "f00", "image": "f00.jpg", "text": f"{hint}\nWhich year?\n{ask}"},
    ]
    gold = tmp_path / "gold.json"
    data = [
        {"image_id": "f00", "question_id": i, "question": q, "answers": [a] * 10}
        for i, (q, a) in enumerate((("what brand?", "x"), ("Which year?", "y")))
    ]
    gold.write_text(json.dumps({"dataset_type": "val", "data": data}))
    task = Task(folder(records, answers=gold))
    assert [q.answers[0] for q in task.questions] == ["x", "y"] and not task.binary
    with pytest.raises(InputError, match="line 2 repeats question_id 'f00'"):
        Task(folder([records[0]] * 2, answers=gold))
    with pytest.raises(InputError, match="line 1 has 2 answers; TextVQA has 10"):
        Task(folder([records[0] | {"answers": ["a", "b"]}]))
