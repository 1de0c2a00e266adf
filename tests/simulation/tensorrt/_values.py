# SPDX-License-Identifier: Apache-2.0
"""What the bindings make of C++ values: enumerations, dimensions, host memory; how strict they are with arguments."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from typing import Any


class Enumeration(enum.Enum):
    """An enumeration of the bindings: equal to itself alone, `int` gives the value."""

    def __int__(self) -> int:
        return int(self.value)


class Bound(type):
    """A class of the bindings that Python may subclass: the subclass must call its __init__."""

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        made = super().__call__(*arguments, **named)
        if not getattr(made, "_bound", False):
            raise TypeError(f"{cls.__name__}.__init__() must be called when overriding __init__")
        return made


def integer(value: Any, what: str) -> int:
    """`value`, which must be an int: an object that only converts to one is refused, as a float would be."""
    if type(value) is not int:
        raise TypeError(f"incompatible function arguments: {what} is {type(value).__name__}, not int")
    return value


def text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"incompatible function arguments: {what} is {type(value).__name__}, not str")
    return value


def flag(value: Any, what: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"incompatible function arguments: {what} is {type(value).__name__}, not bool")
    return value


class Dims:
    """A shape; has a length and items, and is equal to no tuple."""

    __slots__ = ("_sizes",)
    MAX_DIMS = 8

    def __init__(self, shape: Sequence[int] = ()) -> None:
        if len(shape) > self.MAX_DIMS:
            raise ValueError(f"at most {self.MAX_DIMS} dimensions")
        self._sizes = tuple(integer(size, "a dimension") for size in shape)

    def __len__(self) -> int:
        return len(self._sizes)

    def __getitem__(self, index: int) -> int:
        return self._sizes[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._sizes)

    def __repr__(self) -> str:
        return str(self._sizes)


def dims(shape: Any) -> tuple[int, ...]:
    """The sizes of an argument that may be Dims, a tuple or a list."""
    if not isinstance(shape, (Dims, tuple, list)):
        raise TypeError(f"incompatible function arguments: a shape is {type(shape).__name__}")
    return tuple(integer(size, "a dimension") for size in shape)


class IHostMemory(bytearray):
    """Bytes with the buffer protocol: bytes(x), memoryview(x), file.write(x) and nbytes work, len(x) does not."""

    @property
    def nbytes(self) -> int:
        return memoryview(self).nbytes

    def __len__(self) -> int:
        raise TypeError("object of type 'IHostMemory' has no len()")

    def __getitem__(self, index: Any) -> Any:
        raise TypeError("'IHostMemory' object is not subscriptable")

    def __iter__(self) -> Any:
        raise TypeError("'IHostMemory' object is not iterable")
