# SPDX-License-Identifier: Apache-2.0
"""Reader of question and answer files: JSON lines, or one JSON document; every error names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from secateur.bundle.user_files import Record, checked_record, json_lines, read_text, text_or_number

LISTS = ("data", "annotations", "questions")  # names of the list of records in documents of TextVQA, VQA and others
ANSWERS = ("answers", "answer", "label")


def records(path: Path) -> Iterator[tuple[str, Record]]:
    """Yield (where, record) of JSON lines, or of a JSON document: a list, an object with a list, or id: record.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object.
    """
    text = read_text(path)
    document = _document(text) if path.suffix.lower() == ".json" else None
    if document is None:
        yield from json_lines(path, text)
        return
    for i, record in enumerate(document, start=1):
        where = f"{path} entry {i}"
        yield where, checked_record(record, where)


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
        text_or_number(one if isinstance(one, dict) else {"answer": one}, where, "answer")
        for one in (value if isinstance(value, list) else [value])
    )
