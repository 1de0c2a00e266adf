# SPDX-License-Identifier: Apache-2.0
"""Questions in LLaVA's layout, JSON lines of question_id, image and text, or in that of a task's authors.

The images are in a folder; a record that has image_id or imageId instead of image means the file ID.jpg.
The reference answers are on the same lines (answers, answer or label), or in a separate file that is matched to the
questions by `keys`; never in both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar

from secateur.bundle.user_files import Record, text, text_or_number, visible_files
from secateur.errors import BadImage, InputError
from secateur.evaluation.datasets import records
from secateur.evaluation.tasks import base
from secateur.evaluation.tasks.base import Question, Source
from secateur.runtime.image import check_header, load_image

PLACEHOLDER = re.compile(r"<image>\s*")
SHORTLY = "Answer the question using a single word or phrase."
"""Added to questions in the layout of GQA's and TextVQA's authors, as LLaVA does."""


class FolderTask(base.Task):
    """Base class of tasks whose questions are in a file."""

    groups: ClassVar[tuple[str, ...]] = ("category",)  # fields that may name the kind of a question
    one_answer: ClassVar[bool] = False  # a question has exactly one right answer

    def read(self, source: Source) -> Sequence[Question]:
        if source.data is None:
            raise InputError(f"--task {self.name} needs --data: a .jsonl of question_id, image and text, or its folder")
        if not source.data.exists():
            raise InputError(f"{source.data} does not exist; give a file of questions, or its folder")
        table = self.answer_table(source.answers) if source.answers else None
        own = source.data if source.data.is_dir() else source.data.parent
        folders = [source.images] if source.images else [own, own / "images"]
        found: dict[str, Question] = {}
        for where, record in self.question_records(source.data):
            identity = self.identity(record, where)
            if identity in found:
                raise InputError(f"{where} repeats question_id '{found[identity].id}' of {found[identity].where}")
            found[identity] = self.question(record, where, folders, table)
        if not found:
            raise InputError(f"{source.data} has no questions")
        chosen = base.choose(self.checked(list(found.values())), source.questions, source.seed)
        _check_headers(chosen, folders)
        return chosen

    def question(
        self, record: Record, where: str, folders: Sequence[Path], table: dict[str, tuple[str, ...]] | None
    ) -> Question:
        """Return the question of one line; `table` has the answers, or is None if the line has them."""
        number = text_or_number(record, where, "question_id", "id")
        image = self.image(record, where)
        path = _image_file(image, where, folders)
        answers = self.answers(record, where)
        if table is not None:
            if answers:
                raise InputError(f"--answers is given, but {where} has answers too; use one of them")
            answers = next((table[key] for key in self.keys(record, where) if key in table), ())
            if not answers:
                raise InputError(f"{where}: question '{number}' has no answer in --answers")
        elif not answers:
            raise InputError(f"{where} has no answers, answer or label; give their file with --answers")
        return Question(
            id=number,
            where=where,
            picture=image,
            load=partial(load_image, path),
            prompt=self.prompt(record, where),
            answers=answers,
            group=self.group(record),
            unit=self.unit(record, where),
        )

    @property
    def name(self) -> str:
        """Name of the task, as in --task."""
        return type(self).__module__.rpartition(".")[2]

    def question_records(self, path: Path) -> Iterator[tuple[str, Record]]:
        """Yield the place and the record of each question in a file or folder."""
        yield from records.records(_question_file(path) if path.is_dir() else path)

    def image(self, record: Record, where: str) -> str:
        """Return the name of the image file."""
        if record.get("image") is not None:
            return text_or_number(record, where, "image")
        return f"{text_or_number(record, where, 'image', 'image_id', 'imageId')}.jpg"

    def group(self, record: Record) -> str:
        """Return the kind of the question; "" if it has none."""
        return str(next((record[name] for name in self.groups if record.get(name)), ""))

    def prompt(self, record: Record, where: str) -> str:
        return without_placeholders(text(record, where, "text", "question"))

    def identity(self, record: Record, where: str) -> str:
        """Return a text that identifies the question."""
        return text_or_number(record, where, "question_id", "id")

    def unit(self, record: Record, where: str) -> str:
        """Return the unit of the question; questions of one unit belong together."""
        return self.identity(record, where)

    def keys(self, record: Record, where: str) -> tuple[str, ...]:
        """Return the keys of the answers in the table, best first; a record of answers is stored under the first."""
        return (text_or_number(record, where, "question_id", "id"),)

    def answers(self, record: Record, where: str) -> tuple[str, ...]:
        """Return the reference answers in a record; () if it has none.

        Raises:
            InputError: an answer is not text, or there are several and the task takes one.
        """
        found = records.answers(record, where)
        if self.one_answer and len(found) > 1:
            raise InputError(f"{where} has {len(found)} answers; --task {self.name} takes one")
        return found

    def answer_table(self, path: Path) -> dict[str, tuple[str, ...]]:
        """Return the reference answers by key, from a file or from all .json and .jsonl files of a folder.

        Raises:
            InputError: a record has no answers, or two records disagree.
        """
        table: dict[str, tuple[str, ...]] = {}
        for where, record in self.answer_records(path):
            answers = self.answers(record, where)
            if not answers:
                raise InputError(f"{where} has no answers, answer or label")
            key = self.keys(record, where)[0]
            if table.setdefault(key, answers) != answers:
                raise InputError(f"{where} differs from the answers given above for the same question: {key!r}")
        return table

    def answer_records(self, path: Path) -> Iterator[tuple[str, Record]]:
        files = [path]
        if path.is_dir():
            files = visible_files(path, (".json", ".jsonl"))
            if not files:
                raise InputError(f"{path} has no .json or .jsonl file with answers")
        for file in files:
            yield from records.records(file)

    def checked(self, questions: list[Question]) -> list[Question]:
        """Check all questions of the file together and return them."""
        return questions


def first_line(text: str) -> str:
    """Return the first line of a prompt: the question without the instructions after it."""
    return without_placeholders(text).partition("\n")[0].strip()


def without_placeholders(text: str) -> str:
    """Return a question without LLaVA's `<image>`, which says where the image goes, wherever it is in the text."""
    return PLACEHOLDER.sub("", text).strip()


def _image_file(image: str, where: str, folders: Sequence[Path]) -> Path:
    """Return the first file with this name in the folders."""
    try:
        path = next((folder / image for folder in folders if (folder / image).is_file()), None)
    except OSError as problem:  # the name is too long, or a folder is not readable
        raise InputError(f"{where}: image cannot be opened: {problem.strerror}; correct its name") from None
    if path is None:
        raise InputError(f"{where}: image {folders[0] / image} does not exist; give its folder with --images")
    return path


def _check_headers(questions: Sequence[Question], folders: Sequence[Path]) -> None:
    """Read the header of each image once, to refuse a damaged image before any question is asked."""
    first: dict[str, Question] = {}
    for question in questions:
        first.setdefault(question.picture, question)
    for picture, question in first.items():
        try:
            check_header(_image_file(picture, question.where, folders))
        except BadImage as problem:
            raise BadImage(f"{question.where}: {problem}") from None


def _question_file(folder: Path) -> Path:
    files = visible_files(folder, (".jsonl",)) or visible_files(folder, (".json",))
    if len(files) != 1:
        listed = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{folder} must have one .jsonl or .json of questions, it has {listed}; give the file")
    return files[0]
