# SPDX-License-Identifier: Apache-2.0
"""Files in the layout in which the authors of each benchmark publish them."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from secateur.errors import BadImage, InputError
from secateur.evaluation.tasks import gqa, mmbench, mme, pope, textvqa
from secateur.evaluation.tasks.base import Source
from secateur.evaluation.tasks.choice import INSTRUCTION

SHORTLY = "Answer the question using a single word or phrase."


def picture(path: Path, shade: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (6, 6), (shade, 0, 0)).save(path)
    (path.parent / f"._{path.name}").write_bytes(b"\0\5\x16\7")  # as macOS archives have them
    return path


def test_pope(tmp_path: Path) -> None:
    """https://github.com/AoiDragon/POPE: one file of JSON lines for each category, with overlapping numbers."""
    for number, kind in enumerate(("random", "popular", "adversarial")):
        lines = [
            {
                "question_id": i + 1,
                "image": "COCO_val2014_000000310196.jpg",
                "text": f"Is there a {kind} {i}?",
                "label": y,
            }
            for i, y in enumerate(("yes", "no"))
        ]
        text = "\n".join(json.dumps(line) for line in lines)
        (tmp_path / f"coco_pope_{kind}.json").write_text("\ufeff" * (number == 0) + text, encoding="utf-8")
    (tmp_path / "._coco_pope_random.json").write_bytes(b"\0")
    images = picture(tmp_path / "val2014" / "COCO_val2014_000000310196.jpg").parent
    task = pope.Task(Source(tmp_path, images=images))
    assert [(q.group, q.id, q.answers) for q in task.questions] == [
        (kind, number, answers)
        for kind in ("adversarial", "popular", "random")
        for number, answers in (("1", ("yes",)), ("2", ("no",)))
    ]
    one = pope.Task(Source(tmp_path / "coco_pope_popular.json", images=images))
    assert [(q.prompt, q.group) for q in one.questions][0] == ("Is there a popular 0?", "popular")
    assert one.questions[0].where.endswith("coco_pope_popular.json line 1") and one.questions[0].load().size == (6, 6)


@pytest.fixture
def mme_folder(tmp_path: Path) -> Path:
    """MME_Benchmark_release_version: two layouts of categories."""
    root = tmp_path / "MME"
    lines = "Is this good? Please answer yes or no.\tYes\r\nIs this bad? Please answer yes or no.\tNo\r\n"
    for image, text in (
        (root / "count" / "000000006040.jpg", root / "count" / "000000006040.txt"),
        (root / "artwork" / "images" / "1.png", root / "artwork" / "questions_answers_YN" / "1.txt"),
    ):
        picture(image)
        text.parent.mkdir(exist_ok=True)
        text.write_text(lines)
        (text.parent / f"._{text.name}").write_bytes(b"\0")
    return root


def test_mme(mme_folder: Path) -> None:
    task = mme.Task(Source(mme_folder))
    assert [(q.group, q.picture, q.answers) for q in task.questions] == [
        ("artwork", "artwork/images/1.png", ("Yes",)),
        ("artwork", "artwork/images/1.png", ("No",)),
        ("count", "count/000000006040.jpg", ("Yes",)),
        ("count", "count/000000006040.jpg", ("No",)),
    ]
    assert task.questions[1].prompt == "Is this bad? Please answer yes or no." and task.full_marks == 400
    found = task.metrics(np.array([1.0, 1, 1, 0]), np.ones(4))
    assert found["score"] == 200 + 50
    (category,) = {q.group for q in mme.Task(Source(mme_folder / "artwork")).questions}
    assert category == "artwork"
    (mme_folder / "count" / "000000006040.jpg").unlink()
    with pytest.raises(InputError, match=r"000000006040.txt has no image 000000006040.jpg or .png"):
        mme.Task(Source(mme_folder))


def test_gqa(tmp_path: Path) -> None:
    """https://cs.stanford.edu/people/dorarad/gqa: testdev_balanced_questions.json."""
    record = {
        "semantic": [{"operation": "select", "dependencies": [], "argument": "weather"}],
        "entailed": [],
        "imageId": "n161313",
        "groups": {"global": None, "local": "11-place_wearing"},
        "types": {"detailed": "place", "semantic": "global", "structural": "query"},
        "question": "Is it overcast?",
        "answer": "no",
        "fullAnswer": "No, it is clear.",
        "isBalanced": True,
    }
    file = tmp_path / "testdev_balanced_questions.json"
    file.write_text(json.dumps({"201307251": record, "201640614": record | {"answer": "Yes."}}))
    images = picture(tmp_path / "gqa" / "n161313.jpg").parent
    first, second = gqa.Task(Source(file, images=images)).questions
    assert (first.id, first.picture, first.group) == ("201307251", "n161313.jpg", "query")
    assert first.prompt == f"Is it overcast?\n{SHORTLY}" and first.load().size == (6, 6)
    assert gqa.Task(Source(tmp_path, images=images)).score(second, "yes") == 1


def test_textvqa(tmp_path: Path) -> None:
    """https://textvqa.org/dataset: TextVQA_0.5.1_val.json."""
    record = {
        "question": "what is the brand of this camera?",
        "image_id": "003a8ae2ef43b901",
        "image_classes": ["Cassette deck"],
        "flickr_original_url": "https://farm2.staticflickr.com/4_o.jpg",
        "answers": ["dakota"] * 6 + ["clos culombu"] * 2 + ["nous les gosses", "dakota digital"],
        "question_id": 34602,
        "set_name": "val",
    }
    document = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": [record]}
    (tmp_path / "TextVQA_0.5.1_val.json").write_text(json.dumps(document))
    images = picture(tmp_path / "train_images" / "003a8ae2ef43b901.jpg").parent
    task = textvqa.Task(Source(tmp_path, images=images))
    (question,) = task.questions
    assert question.prompt == f"what is the brand of this camera?\n{SHORTLY}" and len(question.answers) == 10
    assert task.score(question, "Dakota") == 1 and 0 < task.score(question, "clos culombu") < 1
    assert question.id == "34602" and question.load().size == (6, 6)


HEADER = ("index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "split")


def encoded(shade: int) -> str:
    data = io.BytesIO()
    Image.new("RGB", (6, 6), (shade, 0, 0)).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def row(index: int, answer: str = "B", **change: str) -> dict[str, str]:
    made = dict.fromkeys(HEADER, "nan") | {"index": str(index), "question": "Which is it?", "A": "cat", "B": "dog"}
    return made | {"answer": answer, "category": "attribute", "image": encoded(index % 200)} | change


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., Source]:
    def write(*rows: dict[str, str], header: tuple[str, ...] = HEADER) -> Source:
        lines = ["\t".join(header), *("\t".join(row[name] for name in header) for row in rows)]
        (tmp_path / "mmbench_dev_20230712.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return Source(tmp_path / "mmbench_dev_20230712.tsv")

    return write


def test_mmbench_asks_every_rotation(table: Callable[..., Source]) -> None:
    task = mmbench.Task(table(row(241, C="a bird", hint='"It barks,\nloudly."'), row(252, "A", C="")))
    first, second, third, *rest = task.questions
    lines = ["A. cat", "B. dog", "C. a bird", INSTRUCTION]
    assert first.prompt == "\n".join(["It barks,", "loudly.", "Which is it?", *lines])
    assert [list(q.options.values()) for q in (second, third)] == [["a bird", "cat", "dog"], ["dog", "a bird", "cat"]]
    assert [q.options[q.answers[0]] for q in task.questions] == ["dog"] * 3 + ["cat"] * 2
    assert {q.unit for q in rest} == {"252"} and first.group == "attribute"
    assert first.load().getpixel((0, 0)) == (41, 0, 0) and rest[0].load().getpixel((0, 0)) == (52, 0, 0)
    scores = np.array([1.0, 1, 0, 1, 1])
    found = task.metrics(scores, np.ones(5))
    assert found == {"circular_accuracy": 0.5, "accuracy": 0.8, "given_order_accuracy": 1}
    twice = task.metrics(scores, np.array([[2.0, 2, 2, 1, 1], [0, 0, 0, 1, 1]]))
    assert twice["circular_accuracy"].tolist() == [pytest.approx(1 / 3), 1]
    assert len(mmbench.Task(Source(task_file(task), questions=3)).questions) == 3
    with pytest.raises(InputError, match="--questions is 4, which splits questions that belong together; use 5"):
        mmbench.Task(Source(task_file(task), questions=4))


def task_file(task: mmbench.Task) -> Path:
    return Path(task.questions[0].where.rpartition(" line ")[0])


def test_mmbench_with_rotations_in_the_file(table: Callable[..., Source]) -> None:
    """The image of a rotation is the index of the row that has it."""
    turned = row(1_000_241, "A", A="dog", B="cat", image="241")
    task = mmbench.Task(table(row(241), turned))
    assert [(q.id, q.unit, q.answers) for q in task.questions] == [("241", "241", ("B",)), ("1000241", "241", ("A",))]
    assert task.questions[1].load().getpixel((0, 0)) == (41, 0, 0)
    assert task.metrics(np.array([1.0, 0]), np.ones(2))["circular_accuracy"] == 0


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([row(1, image="no base64!" * 20)], BadImage, "line 2: the image is not base64"),
        ([row(1, image=base64.b64encode(b"x" * 90).decode())], BadImage, "line 2: image .* is not an image"),
        ([row(1, "E")], InputError, "line 2: the answer is 'E'; it must be one of A, B"),
        ([row(1), row(1)], InputError, "line 3 repeats question_id '1'"),
        ([row(1), row(1_000_001)], InputError, "line 3 repeats a rotation of question 1"),
        ([row(1) | {"index": "x"}], InputError, "line 2: the index is 'x'; it must be a whole number"),
        ([], InputError, "has no questions"),
    ],
)
def test_bad_tables_of_mmbench(
    rows: list[dict[str, str]], error: type[Exception], message: str, table: Callable[..., Source]
) -> None:
    with pytest.raises(error, match=message):
        mmbench.Task(table(*rows))


def test_other_tables(table: Callable[..., Source], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no column 'image'; give MMBench's .tsv"):
        mmbench.Task(table(row(1), header=HEADER[:-3]))
    source = table(row(1))
    assert source.data is not None
    source.data.write_text(source.data.read_text() + "1\t2\n")
    with pytest.raises(InputError, match="line 3 has another number of columns"):
        mmbench.Task(source)
    source.data.rename(tmp_path / "a.txt")
    with pytest.raises(InputError, match="must have one .tsv of MMBench, it has none"):
        mmbench.Task(Source(tmp_path))


def test_images_are_removed_with_the_task(table: Callable[..., Source]) -> None:
    task: Any = mmbench.Task(table(row(1)))
    folder = task._images
    assert [path.name for path in folder.iterdir()] == ["1"]
    del task
    assert not folder.exists()
