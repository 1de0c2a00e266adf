# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from secateur.errors import InputError
from secateur.evaluation.tasks.base import Source
from secateur.evaluation.tasks.choice import Task, chosen

Write = Callable[..., Source]
OPTIONS = {"A": "a cat", "B": "a dog", "C": "cat and dog", "D": "none"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        ("b", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ("B: a dog", "B"),
        ("(b) a dog", "B"),
        ("The answer is C", "C"),
        ("The answer is (c).", "C"),
        ("I think the correct answer: B.", "B"),
        ("Option D", "D"),
        ("a dog", "B"),
        ("A dog.", "B"),
        ("It shows a cat", "A"),
        ("cat and dog", "C"),
        ("E", None),
        ("The answer is a bird", None),
        ("a cat or a dog", None),
        ("", None),
    ],
)
def test_reading_an_answer(answer: str, letter: str | None) -> None:
    assert chosen(answer, OPTIONS) == letter


def test_letters_alone_need_no_options() -> None:
    assert chosen("F", {}) == "F" and chosen("fish", {}) is None


def test_letters_that_are_not_options() -> None:
    options = {"A": "a cat", "C": "a dog"}
    assert [chosen(answer, options) for answer in ("C", "B", "(B)", "a dog")] == ["C", None, None, "C"]


ONE: dict[str, Any] = {"question_id": 1, "image": "a.png", "question": "What is it ?", "category": "animals"}


@pytest.mark.parametrize(
    "given",
    [
        {"options": ["cat", "dog"], "answer": "B"},
        {"choices": ["cat", "dog"], "answer": 1},
        {"A": "cat", "B": "dog", "C": None, "answer": "dog"},
        {"options": {"A": "cat", "B": "dog"}, "label": "(b)"},
    ],
    ids=["letter", "number", "text", "object"],
)
def test_ways_to_write_choices(folder: Write, given: dict[str, Any]) -> None:
    task = Task(folder([ONE | given]))
    (question,) = task.questions
    assert (question.answers, question.options, question.group) == (("B",), {"A": "cat", "B": "dog"}, "animals")
    assert question.prompt.startswith("What is it ?\nA. cat\nB. dog\nAnswer with the option's letter")
    assert [task.score(question, a) for a in ("B", "dog", "cat", "A. cat")] == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("given", "lines", "right"),
    [
        ({"options": {"B": "red", "A": "blue"}, "answer": "B"}, "B. red\nA. blue", "red"),
        ({"options": {"b": "red", "d": "blue"}, "answer": "blue"}, "B. red\nD. blue", "D"),
        ({"A": "red", "B": None, "C": "blue", "answer": "C"}, "A. red\nC. blue", "blue"),
        ({"options": {"A": "red", "B": None, "C": "blue"}, "answer": "blue"}, "A. red\nC. blue", "C"),
    ],
    ids=["any order", "small letters", "a gap", "null"],
)
def test_given_letters_are_kept(folder: Write, given: dict[str, Any], lines: str, right: str) -> None:
    task = Task(folder([ONE | given]))
    (question,) = task.questions
    assert question.prompt.startswith(f"What is it ?\n{lines}\nAnswer with")
    assert [task.score(question, answer) for answer in (right, "green")] == [1, 0]


def test_a_complete_prompt_is_kept(folder: Write) -> None:
    record = ONE | {"text": "What ?\nA. cat", "answer": "C"}
    (question,) = Task(folder([record])).questions
    assert question.prompt == "What ?\nA. cat" and question.options == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"options": ["cat", "dog"], "answer": "C"}, "line 1: the answer is 'C'; it must be one of A, B, the text"),
        ({"options": ["cat", "dog"], "answer": 2}, "the answer is '2'"),
        ({"options": "cat", "answer": "A"}, '"options" must be a list of at most 26 texts'),
        ({"options": [["cat"]], "answer": "A"}, "it must be text"),
        ({"options": {"1": "cat"}, "answer": "A"}, "line 1: the options have the letter '1'; each must be one of A"),
        (
            {"options": {"a": "cat", "A": "dog"}, "answer": "A"},
            "the letter 'A'; each must be one of A to Z, given once",
        ),
        ({"A": "cat", "C": "dog", "answer": 1}, "the answer is '1'; it must be one of A, C"),  # B, or the second?
        ({"options": ["cat", "dog"], "answers": ["A", "B"]}, "line 1 has 2 answers; --task choice takes one"),
    ],
)
def test_wrong_choices(folder: Write, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as problem:
        Task(folder([ONE | given]))
    assert message in str(problem.value)
