# SPDX-License-Identifier: Apache-2.0
"""Behavior shared by all tasks in files: finding questions, answers and images, and the errors."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from secateur import plugins
from secateur.errors import BadImage, InputError, UnknownName
from secateur.evaluation import tasks
from secateur.evaluation.tasks import base, demo, gqa
from secateur.evaluation.tasks.base import Source

Write = Callable[..., Source]
ONE = {"question_id": 1, "image": "a.png", "text": "what ?\nAnswer shortly.", "answer": "cat", "category": "x"}
TWO = {"question_id": "2", "image": "b.png", "text": "who ?", "answers": ["dog", "hound"]}


def test_every_file_is_a_task() -> None:
    found = plugins.names(tasks)
    assert {"demo", "pope", "gqa", "textvqa", "mme", "choice"} <= set(found)
    for name in found:
        task = plugins.load(tasks, name, "task").Task
        assert issubclass(task, base.Task) and task.metric
    with pytest.raises(UnknownName, match="Did you mean 'pope'"):
        plugins.load(tasks, "poep", "task")


def test_reads_questions_and_headers_of_images(folder: Write, tmp_path: Path) -> None:
    task = gqa.Task(folder([ONE, TWO]))
    one, two = task.questions
    assert (one.id, one.prompt, one.answers, one.group) == ("1", "what ?\nAnswer shortly.", ("cat",), "x")
    assert (two.id, two.prompt, two.answers, two.group) == ("2", "who ?", ("dog", "hound"), "")
    assert two.where.endswith("questions.jsonl line 2") and two.load().size == (6, 6)
    image = (tmp_path / "b.png").read_bytes()
    (tmp_path / "b.png").write_bytes(image[:45])
    again = gqa.Task(Source(tmp_path))  # the folder; damage after the header is found when the question is asked
    with pytest.raises(BadImage, match="b.png"):
        again.questions[1].load()
    for data, reason in ((b"no image", "is not an image that is read"), (b"", r"is empty \(0 bytes\)")):
        (tmp_path / "b.png").write_bytes(data)
        with pytest.raises(BadImage, match=rf"questions.jsonl line 2: image .*b.png {reason}"):
            gqa.Task(Source(tmp_path))


@pytest.mark.parametrize("text", ["<image>\nwho ?", "who ?\n<image>", "who <image>?"])
def test_placeholders_of_a_data_set_are_removed(folder: Write, text: str) -> None:
    """In LLaVA's files <image> marks the place of the image. The layout requires it, so there is no warning."""
    (one,) = gqa.Task(folder([TWO | {"text": text}])).questions
    assert one.prompt == "who ?"


def test_only_images_of_chosen_questions_are_opened(folder: Write, tmp_path: Path) -> None:
    source = folder([ONE, TWO], questions=1)
    (chosen,) = gqa.Task(source).questions
    for name in {"a.png", "b.png"} - {chosen.picture}:
        (tmp_path / name).write_text("no image")
    assert [q.id for q in gqa.Task(source).questions] == [chosen.id]
    (tmp_path / chosen.picture).write_text("no image")
    with pytest.raises(BadImage, match=chosen.picture):
        gqa.Task(source)


def test_an_image_name_that_is_too_long(folder: Write) -> None:
    source = folder([ONE, TWO])
    assert source.data is not None
    source.data.write_text("\n".join(json.dumps(x) for x in (ONE, TWO | {"image": "a" * 300})))
    with pytest.raises(InputError, match="questions.jsonl line 2: image cannot be opened: File name too long"):
        gqa.Task(source)


def test_images_in_another_folder(folder: Write, tmp_path: Path) -> None:
    source = folder([ONE])
    (tmp_path / "images").mkdir()
    (tmp_path / "a.png").rename(tmp_path / "images" / "a.png")
    assert gqa.Task(source).questions[0].load().size == (6, 6)
    (tmp_path / "images").rename(tmp_path / "val")
    assert gqa.Task(Source(source.data, images=tmp_path / "val")).questions[0].load().size == (6, 6)
    with pytest.raises(InputError, match=r"line 1: image .*a.png does not exist; give its folder with --images"):
        gqa.Task(source)


@pytest.mark.parametrize(
    "answers",
    [
        '{"question_id": 1, "label": "cat"}\n\n{"question_id": "2", "answer": "dog"}\n',
        '[{"question_id": 1, "answers": ["cat"]}, {"question_id": 2, "answers": [{"answer": "dog"}]}]',
        '{"data": [{"question_id": 1, "answers": ["cat"]}, {"question_id": 2, "answer": "dog"}]}',
        '{"1": {"answer": "cat", "semantic": []}, "2": {"answer": "dog"}}',
        '{"1": "cat", "2": ["dog"]}',
    ],
    ids=["lines", "list", "data", "by id", "plain"],
)
def test_answers_from_a_separate_file(folder: Write, tmp_path: Path, answers: str) -> None:
    bare = [{k: v for k, v in record.items() if not k.startswith("answer")} for record in (ONE, TWO)]
    (tmp_path / "gold.json").write_text(answers)
    task = gqa.Task(folder(bare, answers=tmp_path / "gold.json"))
    assert [q.answers for q in task.questions] == [("cat",), ("dog",)]


def test_answers_must_be_in_one_place(folder: Write, tmp_path: Path) -> None:
    bare = {k: v for k, v in ONE.items() if k != "answer"}
    gold = tmp_path / "gold.json"
    gold.write_text('{"1": "cat"}')
    with pytest.raises(
        InputError, match=r"--answers is given, but .*questions.jsonl line 2 has answers too; use one of them"
    ):
        gqa.Task(folder([bare, TWO], answers=gold))
    gold.write_text('{"7": "cat"}')
    with pytest.raises(InputError, match=r"line 1: question '1' has no answer in --answers"):
        gqa.Task(folder([bare], answers=gold))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "has no questions"),
        (["", "  "], "has no questions"),
        ([ONE, "{"], "line 2 is not JSON"),
        ([ONE, "[1]"], "line 2 is not a JSON object"),
        ([ONE, "[" * 100_000], "line 2 is nested too deeply"),
        ([{**ONE, "question_id": None}], 'line 1 has no "question_id" or "id"'),
        ([{**ONE, "image": ["a.png"]}], 'line 1: "image" is ["a.png"]; it must be text'),
        ([{**ONE, "text": " "}], "it must be text"),
        ([ONE, {**TWO, "question_id": 1}], "line 2 repeats question_id '1' of"),
        ([{**ONE, "answer": None}], "line 1 has no answers, answer or label; give their file"),
        ([{**ONE, "answer": []}], "line 1 has no answers, answer or label"),
        ([{**ONE, "answers": [{"text": "cat"}]}], 'line 1 has no "answer"'),
    ],
)
def test_errors_name_the_bad_line(folder: Write, lines: list[Any], message: str) -> None:
    source = folder([ONE, TWO])
    assert source.data is not None
    source.data.write_text("\n".join(x if isinstance(x, str) else json.dumps(x) for x in lines))
    with pytest.raises(InputError) as problem:
        gqa.Task(source)
    assert message in str(problem.value) and "questions.jsonl" in str(problem.value)
    assert "\n" not in str(problem.value)


def test_errors_name_the_bad_answer_file(folder: Write, tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    bare = {k: v for k, v in ONE.items() if k != "answer"}
    for text, message in (
        ('{"question_id": 1}', "gold.jsonl line 1 has no answers"),
        (
            '{"question_id": 1, "answer": "a"}\n{"question_id": 1, "answer": "b"}',
            "line 2 differs from the answers given above",
        ),
        ("nonsense", "gold.jsonl line 1 is not JSON"),
    ):
        gold.write_text(text)
        with pytest.raises(InputError, match=message):
            gqa.Task(folder([bare], answers=gold))
    with pytest.raises(InputError, match="does not exist"):
        gqa.Task(folder([bare], answers=tmp_path / "none.jsonl"))


def test_wrong_folders(folder: Write, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--task gqa needs --data"):
        gqa.Task(Source())
    with pytest.raises(InputError, match="does not exist"):
        gqa.Task(Source(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="it has none"):
        gqa.Task(Source(tmp_path))
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "\xe9"}')
    with pytest.raises(InputError, match="latin.jsonl is not UTF-8 at byte 10"):
        gqa.Task(Source(tmp_path))
    (tmp_path / "other.jsonl").write_text("")
    with pytest.raises(InputError, match="it has latin.jsonl, other.jsonl; give the file"):
        gqa.Task(Source(tmp_path))


def test_some_questions(folder: Write) -> None:
    records = [{**ONE, "question_id": i} for i in range(20)]
    source = folder(records)
    few = [q.id for q in gqa.Task(folder(records, questions=5)).questions]
    assert len(few) == 5 and few == sorted(few, key=int) and few != ["0", "1", "2", "3", "4"]
    assert few == [q.id for q in gqa.Task(folder(records, questions=5)).questions]
    assert few != [q.id for q in gqa.Task(folder(records, questions=5, seed=1)).questions]
    assert len(gqa.Task(source).questions) == 20
    with pytest.raises(InputError, match="--questions is 21, but there are 20; lower it"):
        gqa.Task(folder(records, questions=21))
    with pytest.raises(InputError, match="--questions is 0; it must be at least 1"):
        folder(records, questions=0)
    with pytest.raises(InputError, match="--seed is -1"):
        folder(records, seed=-1)


def test_short_answers() -> None:
    for answer, right in (("Cat.", 1), (" cat\n", 1), ("a cat", 0), ("", 0)):
        question = base.Question("1", "", "", lambda: None, "", ("cat", "Tomcat"))  # type: ignore[arg-type, return-value]
        assert gqa.Task.score(object.__new__(gqa.Task), question, answer) == right


def test_the_demo_task_needs_no_files() -> None:
    task = demo.Task(Source(questions=7, seed=3))
    again = demo.Task(Source(questions=7, seed=3))
    assert [q.prompt for q in task.questions] == [q.prompt for q in again.questions]
    assert {q.group for q in task.questions} == {"color", "digit", "count", "position", "digit_at", "presence"}
    image = task.questions[6].load()
    assert image.size == (96, 96) and image.tobytes() == again.questions[6].load().tobytes()
    assert image.tobytes() != task.questions[0].load().tobytes()
    assert task.score(task.questions[0], f" {task.questions[0].answers[0]} ") == 1
    assert task.score(task.questions[0], "nothing") == 0
    with pytest.raises(InputError, match="--data cannot be used with --task demo"):
        demo.Task(Source(Path("x")))
