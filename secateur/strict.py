# SPDX-License-Identifier: Apache-2.0
"""JSON data as dataclasses, strictly: no missing, unknown or wrongly typed field."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from typing import Any, TypeVar

T = TypeVar("T")


def decode(cls: type[T], data: Any) -> T:
    """`data`, as json.loads gives it, as the dataclass `cls`.

    Raises:
        TypeError, ValueError: it does not describe one; the message names the field.
    """
    value: T = _decode(cls, data, cls.__name__.lower())
    return value


def _decode(hint: Any, data: Any, where: str) -> Any:
    """`data` as the type `hint`, strictly: no missing, unknown or wrongly typed field."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, data, where)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if data is None and type(None) in arguments:
            return None
        for option in arguments:
            try:
                return _decode(option, data, where)
            except (TypeError, ValueError):
                continue
        raise ValueError(f"{where} is {data!r}, not a {hint}")
    if origin is tuple:
        items = data if isinstance(data, list) else _wrong(where, data, "list")
        if arguments[-1] is Ellipsis:
            return tuple(_decode(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(items))
        if len(items) != len(arguments):
            raise ValueError(f"{where} has {len(items)} items, not {len(arguments)}")
        pairs = zip(arguments, items, strict=True)
        return tuple(_decode(a, item, f"{where}[{i}]") for i, (a, item) in enumerate(pairs))
    if origin is dict:
        entries = data if isinstance(data, dict) else _wrong(where, data, "object")
        return {key: _decode(arguments[1], item, f"{where}.{key}") for key, item in entries.items()}
    if hint is Any:
        return data
    if hint is float and type(data) in (int, float):
        return float(data) if abs(data) <= sys.float_info.max else _wrong(where, data, "finite number")
    return data if type(data) is hint else _wrong(where, data, hint.__name__)


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:
    entries = data if isinstance(data, dict) else _wrong(where, data, "object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.metadata.get("json", True)}
    for name in entries:
        if name not in fields:
            raise ValueError(f"{where} has an unknown field '{name}'")
    for name, spec in fields.items():
        if name not in entries and spec.default is spec.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the field '{name}'")
    return cls(**{name: _decode(hints[name], item, f"{where}.{name}") for name, item in entries.items()})


def _wrong(where: str, data: Any, wanted: str) -> Any:
    raise ValueError(f"{where} is {data!r}, not a {wanted}")
