# SPDX-License-Identifier: Apache-2.0
"""Reader of question and answer files: JSON lines, or one JSON document; every error names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateur.bundle.regular_file import LARGEST_LIST, read_text
from secateur.errors import InputError

Record = dict[str, Any]
LISTS = ("data", "annotations", "questions")  # names of the list of records in documents of TextVQA, VQA and others
ANSWERS = ("answers", "answer", "label")


def records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield (where, record) of JSON lines, or of a JSON document: a list, an object with a list, or id: record.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    text = read(path)
    document = _document(text) if path.suffix == ".json" else None
    if document is not None:
        for i, record in enumerate(document, start=1):
            yield _checked(f"{path} entry {i}", record)
        return
    for i, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except (ValueError, RecursionError) as problem:
                raise InputError(f"{path} line {i} is not JSON: {problem}") from None
            yield _checked(f"{path} line {i}", record)


def read(path: Path) -> str:
    """Return the text of a file.

    Raises:
        InputError: it is missing, or cannot be read as UTF-8.
    """
    try:
        return read_text(path, LARGEST_LIST, "utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give a JSON-lines file") from None
    except (OSError, UnicodeDecodeError) as problem:
        raise InputError(f"{path} cannot be read: {problem}") from None


def _checked(where: str, record: Any) -> tuple[str, Record]:
    if not isinstance(record, dict):
        raise InputError(f'{where} is not a JSON object {{"question_id": ..., "image": ..., "text": ...}}')
    return where, record


def _document(text: str) -> list[Any] | None:
    """Return the records of a JSON document; None if it is JSON lines, whatever its suffix."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if isinstance(document, list):
        return document
    if not isinstance(document, dict) or "question_id" in document:
        return None
    found = next((document[key] for key in LISTS if isinstance(document.get(key), list)), None)
    if found is not None:
        return list(found)
    return [
        {"question_id": key} | (value if isinstance(value, dict) else {"answers": value})
        for key, value in document.items()
    ]


def text(record: Record, where: str, *names: str) -> str:
    """Return the first of the fields `names` that the record has, as text.

    Raises:
        InputError: it has none of them, or the value is empty, or neither text nor number.
    """
    value = next((record[name] for name in names if record.get(name) is not None), None)
    listed = " or ".join(f'"{name}"' for name in names)
    if value is None:
        raise InputError(f"{where} has no {listed}")
    if isinstance(value, bool) or not isinstance(value, str | int | float) or not str(value).strip():
        raise InputError(f"{where}: {listed} is {json.dumps(value)}; it must be text")
    return str(value)


def answers(record: Record, where: str) -> tuple[str, ...]:
    """Return the reference answers in a record, as text; () if it has none.

    Raises:
        InputError: an answer is not text, a number or an object with "answer".
    """
    name = next((name for name in ANSWERS if record.get(name) is not None), None)
    if name is None:
        return ()
    value = record[name]
    return tuple(
        text(one if isinstance(one, dict) else {"answer": one}, where, "answer")
        for one in (value if isinstance(value, list) else [value])
    )
