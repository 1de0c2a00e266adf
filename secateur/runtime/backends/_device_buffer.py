# SPDX-License-Identifier: Apache-2.0
"""A tensor in device memory, or a part of one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from secateur.runtime.backends import base
from secateur.runtime.backends._memory import Block
from secateur.runtime.backends._stream import Stream
from secateur.runtime.backends.base import Array


class DeviceBuffer:
    """A Buffer on one CUDA stream: views and copies are only noted, `numpy` waits.

    block    the memory that it, and every view of it, lies in
    offset   bytes from the start of the block
    strides  bytes from one element of an axis to the next
    """

    def __init__(
        self,
        stream: Stream,
        block: Block,
        shape: tuple[int, ...],
        dtype: np.dtype[Any],
        strides: tuple[int, ...],
        offset: int = 0,
    ) -> None:
        self.block, self._stream = block, stream
        self._shape, self._dtype, self._strides, self._offset = shape, dtype, strides, offset

    @classmethod
    def zeros(cls, stream: Stream, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> DeviceBuffer:
        """A new buffer, filled with zeros."""
        kind = np.dtype(dtype)
        block = stream.block(math.prod(shape) * kind.itemsize)
        stream.clear(block)
        return cls(stream, block, tuple(shape), kind, _packed(tuple(shape), kind.itemsize))

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def address(self) -> int:
        return self.block.address + self._offset

    @property
    def nbytes(self) -> int:
        return math.prod(self._shape) * self._dtype.itemsize

    @property
    def contiguous(self) -> bool:
        """Rows lie behind each other without gaps, as a graph needs them."""
        return self.nbytes == 0 or self._outer() == 0

    def view(self, *index: slice) -> DeviceBuffer:
        shape, offset = list(self._shape), self._offset
        for axis, part in enumerate(index):
            start, stop, step = part.indices(self._shape[axis])
            if step != 1:
                raise ValueError("a view takes slices of step 1")
            shape[axis] = max(0, stop - start)
            offset += start * self._strides[axis]
        return DeviceBuffer(self._stream, self.block, tuple(shape), self._dtype, self._strides, offset)

    def write(self, source: base.Buffer | Array) -> None:
        if source.shape != self._shape or source.dtype != self._dtype:
            raise ValueError(
                f"cannot write {source.dtype} {list(source.shape)} into a buffer of {self._dtype} {list(self._shape)}"
            )
        if isinstance(source, np.ndarray):
            self._stream.upload(source, self._runs(outer := self._outer()), self._width(outer))
        elif isinstance(source, DeviceBuffer):
            outer = max(self._outer(), source._outer())
            pairs = zip(self._starts(outer), source._starts(outer), strict=True)
            self._stream.copy(pairs, self._width(outer))
        else:
            raise TypeError(f"cannot copy a {type(source).__name__} to a CUDA device; pass its array")

    def numpy(self) -> Array:
        outer = self._outer()
        data = self._stream.download(self.nbytes, self._runs(outer), self._width(outer))
        array: Array = data.view(self._dtype).reshape(self._shape)
        return array

    def _outer(self) -> int:
        """Number of leading axes that one must go through to meet all bytes in runs without gaps."""
        packed = _packed(self._shape, self._dtype.itemsize)
        for axis in reversed(range(len(self._shape))):
            if self._shape[axis] != 1 and self._strides[axis] != packed[axis]:
                return axis + 1
        return 0

    def _width(self, outer: int) -> int:
        """Bytes of such a run."""
        return math.prod(self._shape[outer:]) * self._dtype.itemsize

    def _starts(self, outer: int) -> Iterator[int]:
        """Address of each run."""
        if self.nbytes:
            for index in np.ndindex(*self._shape[:outer]):
                yield self.address + sum(i * stride for i, stride in zip(index, self._strides, strict=False))

    def _runs(self, outer: int) -> Iterator[tuple[int, int]]:
        """The address of each run, and where it stands among all bytes of the tensor."""
        width = self._width(outer)
        return ((start, i * width) for i, start in enumerate(self._starts(outer)))


def _packed(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Strides of a tensor without gaps."""
    return tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
