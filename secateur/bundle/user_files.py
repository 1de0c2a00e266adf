# SPDX-License-Identifier: Apache-2.0
"""Read files that people write: text, JSON, JSON lines, folders. Every error names the file and the line or entry."""

from __future__ import annotations

import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from secateur.bundle import regular_file
from secateur.bundle.regular_file import LARGEST_LIST
from secateur.errors import InputError, first_line

Record = dict[str, Any]


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: it is missing, is no regular file, or is not UTF-8.
    """
    try:
        return regular_file.read_text(path, LARGEST_LIST, "utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; give the path of a file") from None
    except UnicodeDecodeError as problem:
        raise InputError(f"{path} is not UTF-8 at byte {problem.start}; save it as UTF-8") from None
    except OSError as problem:
        raise InputError(f"{path} cannot be read: {problem.strerror}") from None


def parsed(document: str, where: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        InputError: it is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(document)
    except RecursionError:
        raise InputError(f"{where} is nested too deeply; it must be one JSON object with texts") from None
    except ValueError as problem:
        raise InputError(f"{where} is not JSON: {first_line(problem)}") from None


def json_lines(path: Path, document: str | None = None) -> Iterator[tuple[str, Record]]:
    """Yield the place ("FILE line 3") and the JSON object of each line that is not blank.

    document  the text of the file, if it has been read already

    Raises:
        InputError: see `read_text`; or a line is not a JSON object.
    """
    for number, line in enumerate((read_text(path) if document is None else document).split("\n"), start=1):
        if line.strip():
            where = f"{path} line {number}"
            yield where, checked_record(parsed(line, where), where)


def checked_record(value: Any, where: str) -> Record:
    """Return `value` if it is a JSON object.

    Raises:
        InputError: it is not.
    """
    if not isinstance(value, dict):
        raise InputError(f'{where} is not a JSON object such as {{"image": "a.jpg", "text": "a question"}}')
    return value


def text(record: Record, where: str, *names: str) -> str:
    """Return the text in the first of the fields `names` that the record has; null counts as missing.

    Raises:
        InputError: it has none of them, or the value is no text, empty, or cannot be encoded.
    """
    return _field(record, where, names, (str,))


def text_or_number(record: Record, where: str, *names: str) -> str:
    """Return a field such as a question's id or an answer, which may be a number, as text; see `text`."""
    return _field(record, where, names, (str, int, float))


def _field(record: Record, where: str, names: tuple[str, ...], kinds: tuple[type, ...]) -> str:
    value = next((record[name] for name in names if record.get(name) is not None), None)
    listed = " or ".join(f'"{name}"' for name in names)
    if value is None:
        raise InputError(f"{where} has no {listed}")
    if type(value) not in kinds or not str(value).strip():
        shown = first_line(ValueError(json.dumps(value)))
        raise InputError(f"{where}: {listed} is {shown}; it must be text")
    try:
        str(value).encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: {listed} has half of a surrogate pair (\\ud800 to \\udfff); correct it") from None
    return str(value)


def visible_files(folder: Path, suffixes: Container[str], deep: bool = False) -> list[Path]:
    """Return the sorted files of a folder, or of a whole tree, with one of these lower-case suffixes.

    Hidden files are left out: macOS writes a `._NAME` beside each file of an archive, with the same suffix.
    """
    found = folder.rglob("*") if deep else folder.iterdir()
    return sorted(p for p in found if p.suffix.lower() in suffixes and not p.name.startswith(".") and p.is_file())
