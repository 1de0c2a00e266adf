# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from secateur.errors import InputError
from secateur.evaluation.tasks.base import Question, Source
from secateur.evaluation.tasks.pope import Task, says_yes

Write = Callable[..., Source]


def made(labels: list[bool], groups: list[str]) -> Task:
    """Return a task with these questions, without files."""
    task = object.__new__(Task)
    task.questions = tuple(
        Question(str(i), "", "", lambda: None, "", ("yes" if label else "no",), group)  # type: ignore[arg-type, return-value]
        for i, (label, group) in enumerate(zip(labels, groups, strict=True))
    )
    return task


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("Yes", True),
        ("No", False),
        ("yes, there is a dog", True),
        ("No, there is not.", False),
        ("There is not a dog", False),
        ("Yes. There are no cats", True),
        ("A knot is nothing", True),
        ("", True),
    ],
)
def test_reading_an_answer(answer: str, yes: bool) -> None:
    assert says_yes(answer) == yes


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.sampled_from("ab")), min_size=1, max_size=30), st.data())
def test_metrics_equal_scikit_learn(rows: list[tuple[bool, bool, str]], data: st.DataObject) -> None:
    """Also if questions are drawn several times or not at all."""
    labels, said, groups = (list(column) for column in zip(*rows, strict=True))
    task = made(labels, groups)
    scores = np.array([task.score(q, "Yes" if s else "No") for q, s in zip(task.questions, said, strict=True)])
    assert scores.tolist() == [float(a == b) for a, b in zip(labels, said, strict=True)]
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)).filter(any))
    weights = np.array([counts, [1] * len(rows)], float)
    found = task.metrics(scores, weights)
    for i, weight in enumerate(weights):
        repeated = np.repeat(np.arange(len(rows)), weight.astype(int))
        y, p, g = (np.array(column)[repeated] for column in (labels, said, groups))
        each = [f1_score(y[g == x], p[g == x], zero_division=0) for x in sorted(set(g.tolist()))]
        assert found["f1"][i] == pytest.approx(np.mean(each))
        assert found["accuracy"][i] == pytest.approx(np.mean(y == p))
        assert found["precision"][i] == pytest.approx(precision_score(y, p, zero_division=0))
        assert found["recall"][i] == pytest.approx(recall_score(y, p, zero_division=0))
        assert found["yes_ratio"][i] == pytest.approx(np.mean(p))


def test_labels_in_separate_files(folder: Write, tmp_path: Path) -> None:
    """LLaVA has one file of questions; POPE has one file of labels per category, each numbered from 1."""
    asked: list[dict[str, Any]] = []
    labels = tmp_path / "coco"
    labels.mkdir()
    for category, label in (("random", "no"), ("popular", "yes")):
        image, text = f"{category}.png", f"Is there a {category} dog in the image?"
        record = {"question_id": 1, "image": image, "text": text, "label": label}
        (labels / f"coco_pope_{category}.json").write_text(json.dumps(record) + "\n" + json.dumps(record) + "\n")
        full = {"question_id": len(asked), "image": image, "text": text + "\nAnswer the question using a single word."}
        asked.append(full | {"category": category})
    task = Task(folder(asked, answers=labels))
    assert [(q.group, q.answers) for q in task.questions] == [("random", ("no",)), ("popular", ("yes",))]
    (labels / "coco_pope_random.json").write_text("")
    with pytest.raises(InputError, match="line 1: question '0' has no answer in --answers"):
        Task(folder(asked, answers=labels))
    (labels / "coco_pope_random.json").write_text(json.dumps(asked[0] | {"answers": ["no", "yes"]}))
    with pytest.raises(InputError, match=r"coco_pope_random.json line 1 has 2 answers; --task pope takes one"):
        Task(folder(asked, answers=labels))
    with pytest.raises(InputError, match=r"questions.jsonl line 1 has 2 answers; --task pope takes one"):
        Task(folder([asked[0] | {"answers": ["no", "yes"]}]))
    with pytest.raises(InputError, match="the label is 'maybe'; it must be yes or no"):
        Task(folder([asked[0] | {"label": "maybe"}]))
