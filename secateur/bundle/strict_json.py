# SPDX-License-Identifier: Apache-2.0
"""Read and write dataclasses as JSON; missing, unknown and wrongly typed fields are errors."""

from __future__ import annotations

import dataclasses
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

from secateur.bundle.regular_file import read_text
from secateur.errors import InputError, printable

T = TypeVar("T")
Json = dict[str, Any]
LARGEST = 1 << 63
NAMES = {int: "an integer", float: "a finite number", str: "a string", bool: "true or false"}


def decode(cls: type[T], data: Any) -> T:
    """Convert `data`, a result of json.loads, to the dataclass `cls`.

    Raises:
        TypeError, ValueError: it does not describe a `cls`; names the field.
    """
    value: T = convert(cls, data, cls.__name__.lower())
    return value


def convert(hint: Any, data: Any, where: str) -> Any:
    """Convert `data` to the type `hint`; `where` is the path of the field for messages.

    Raises:
        TypeError, ValueError: `data` is of another type.
    """
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, data, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        options = [option for option in arguments if option is not type(None)]
        for option in options[:-1]:
            try:
                return convert(option, data, where)
            except (TypeError, ValueError):
                continue
        return convert(options[-1], data, where)
    if origin is typing.Literal:
        return data if data in arguments else _wrong(where, data, f"one of {', '.join(map(str, arguments))}")
    if origin is tuple:
        items = data if isinstance(data, list | tuple) else _wrong(where, data, "a list")
        if arguments[-1] is Ellipsis:
            return tuple(convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
        if len(items) != len(arguments):
            raise ValueError(f"{where} has {len(items)} items, not {len(arguments)}")
        pairs = zip(arguments, items, strict=True)
        return tuple(convert(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(pairs))
    if origin is dict:
        entries = data if isinstance(data, dict) else _wrong(where, data, "an object")
        return {key: convert(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if hint is Any:
        return data
    if hint is float and type(data) in (int, float):
        return float(data) if abs(data) <= sys.float_info.max else _wrong(where, data, "a finite number")
    if type(data) is int and abs(data) >= LARGEST:
        _wrong(where, data, "an integer of at most 64 bits")
    return data if type(data) is hint else _wrong(where, data, NAMES.get(hint, hint.__name__))


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    entries = data if isinstance(data, dict) else _wrong(where, data, "an object")
    hints = typing.get_type_hints(cls)
    fields = {_key(f): f for f in dataclasses.fields(cls) if f.metadata.get("json", True)}
    for key in entries:
        if key not in fields:
            raise ValueError(f"{where} has an unknown field {key!r:.100}")
    for key, spec in fields.items():
        if key not in entries and spec.default is spec.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the field '{key}'")
    named = {key: fields[key].name for key in entries}
    return cls(**{named[key]: convert(hints[named[key]], item, f"{where}.{key}") for key, item in entries.items()})


def _key(field: dataclasses.Field[Any]) -> str:
    """Return the JSON key of a field: `key` in its metadata, or its name."""
    return str(field.metadata.get("key", field.name))


def _wrong(where: str, data: Any, wanted: str) -> Any:
    raise ValueError(f"{where} is {data!r:.100}, not {wanted}")


def to_json(value: Any) -> str:
    """Return a dataclass as JSON text with keys in field order; equal values give equal bytes."""
    hidden: Json = {f.name: {} for f in dataclasses.fields(value) if not f.metadata.get("json", True)}
    shown = dataclasses.asdict(dataclasses.replace(value, **hidden))
    keys = {f.name: _key(f) for f in dataclasses.fields(value) if f.name not in hidden}
    return json.dumps({keys[name]: shown[name] for name in keys}, indent=2) + "\n"


def read_json(cls: type[T], path: Path, error: type[InputError]) -> T:
    """Read a dataclass from a file.

    Raises:
        error: the file is missing, not a regular file, too large, not JSON, or does not describe a `cls`; names the
            file and the field.
    """
    try:
        data = json.loads(read_text(path, encoding="utf-8-sig"))  # an editor may write a byte order mark
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path} cannot be read as JSON: {problem}") from None
    try:
        return decode(cls, data)
    except (TypeError, ValueError) as problem:
        raise error(f"{path}: {printable(str(problem))}") from None
