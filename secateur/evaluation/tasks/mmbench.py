# SPDX-License-Identifier: Apache-2.0
"""MMBench (arXiv 2307.06281) from its own .tsv, by circular evaluation: right if every rotation of the choices is.

A row has index, question, hint, A, B, C, D, answer, category and image (base64). A question with k choices is asked k
times, each time with the choices moved by one letter. Rows that are rotations already have an index of 1,000,000 and
more, and may have the index of another row as image; then nothing is added.
"""

from __future__ import annotations

import base64
import binascii
import csv
import io
import shutil
import string
import sys
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from secateur.bundle.user_files import Record, read_text, text_or_number, visible_files
from secateur.errors import BadImage, InputError
from secateur.evaluation.tasks import choice
from secateur.evaluation.tasks.base import Array, Question, Source, mean, ratio

ROTATION = 1_000_000
"""Step between the indices of the rotations of one question."""
COLUMNS = ("index", "question", "A", "B", "answer", "image")
LONGEST_INDEX = 64
"""An image that is not longer is the index of another row."""


class Task(choice.Task):
    metric = "circular_accuracy"

    def __init__(self, source: Source) -> None:
        self._images = Path(tempfile.mkdtemp())
        weakref.finalize(self, shutil.rmtree, self._images, ignore_errors=True)
        super().__init__(source)

    def metrics(self, scores: Array, weights: Array) -> dict[str, Array]:
        """Compute circular_accuracy over the questions, and accuracy over all rotations and over the given order."""
        units: dict[str, list[int]] = {}
        for i, question in enumerate(self.questions):
            units.setdefault(question.unit, []).append(i)
        first = [own[0] for own in units.values()]
        right = np.array([scores[own].min() for own in units.values()])
        given = np.array([float(int(q.id) < ROTATION) for q in self.questions])
        return {
            "circular_accuracy": ratio(weights[..., first] @ right, weights[..., first].sum(axis=-1)),
            "accuracy": mean(scores, weights),
            "given_order_accuracy": mean(scores, weights * given),
        }

    def question_records(self, path: Path) -> Iterator[tuple[str, Record]]:
        rows = list(_rows(_table(path)))
        rotated = any(int(row["index"]) >= ROTATION for _, row in rows)
        by_index = {row["index"]: row["image"] for _, row in rows}
        for where, row in rows:
            image = row["image"]
            image = by_index.get(image, image) if len(image) <= LONGEST_INDEX else image
            row["image"] = self._write(f"{int(row['index']) % ROTATION}", image, where)
            letters = [letter for letter in string.ascii_uppercase if _filled(row.get(letter))]
            for turn in range(1 if rotated else len(letters)):
                yield where, _turned(row, letters, turn)

    def _write(self, name: str, encoded: str, where: str) -> str:
        """Write an image to a file, so that the table can be freed after reading; return its path."""
        path = self._images / name
        if not path.exists():
            try:
                path.write_bytes(base64.b64decode(encoded, validate=True))
            except (binascii.Error, ValueError):
                raise BadImage(f"{where}: the image is not base64; download the file again") from None
        return str(path)

    def prompt(self, record: Record, where: str) -> str:
        asked = super().prompt(record, where)
        return f"{record['hint']}\n{asked}" if _filled(record.get("hint")) else asked

    def unit(self, record: Record, where: str) -> str:
        return str(int(record["question_id"]) % ROTATION)

    def checked(self, questions: Sequence[Question]) -> list[Question]:
        """Check that the rotations of a question have different answers: else they are other questions."""
        seen: set[tuple[str, str]] = set()
        for question in questions:
            if (question.unit, question.answers[0]) in seen:
                raise InputError(f"{question.where} repeats a rotation of question {question.unit}; remove it")
            seen.add((question.unit, question.answers[0]))
        return list(questions)


def _turned(row: Record, letters: list[str], turn: int) -> Record:
    """Return a question with its choices moved by `turn` letters, as the fields of a choice."""
    places = letters[turn:] + letters[:turn]  # the choice at letters[i] goes to places[i]
    made = {name: row[name] for name in ("question", "image", "category", "hint") if _filled(row.get(name))}
    moved = dict(sorted(zip(places, (row[letter] for letter in letters), strict=True)))
    answer = row["answer"].strip().upper()
    answer = places[letters.index(answer)] if answer in letters else answer
    return made | {"question_id": int(row["index"]) + turn * ROTATION, "options": moved, "answer": answer}


def _filled(value: str | None) -> bool:
    """Return whether a cell has text; pandas writes nan into empty ones."""
    return value is not None and value.strip().lower() not in ("", "nan")


def _table(path: Path) -> Path:
    files = [path] if path.is_file() else visible_files(path, (".tsv",))
    if len(files) != 1:
        listed = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{path} must have one .tsv of MMBench, it has {listed}; give the file")
    return files[0]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield the rows of the table, with the place of each."""
    limit = csv.field_size_limit(sys.maxsize)  # images are longer than the usual limit
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), delimiter="\t", strict=True)
        lacking = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if lacking:
            raise InputError(f"{path} has no column '{lacking[0]}'; give MMBench's .tsv, as its authors publish it")
        for row in reader:
            where = f"{path} line {reader.line_num}"
            if None in row or None in row.values():
                raise InputError(f"{where} has another number of columns than the first line")
            if not text_or_number(row, where, "index").isascii() or not row["index"].isdecimal():
                raise InputError(f"{where}: the index is '{row['index']}'; it must be a whole number")
            yield where, row
    except csv.Error as problem:
        raise InputError(f"{path} line {reader.line_num} is not a row of a table: {problem}") from None
    finally:
        csv.field_size_limit(limit)
