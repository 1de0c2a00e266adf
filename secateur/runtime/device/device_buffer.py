# SPDX-License-Identifier: Apache-2.0
"""Tensors in device memory."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from secateur.runtime.backends import base
from secateur.runtime.backends.base import Array
from secateur.runtime.device.memory import Block
from secateur.runtime.device.stream import Stream
from secateur.runtime.device.strides import StridedLayout


class DeviceBuffer:
    """A `Buffer` on one CUDA stream: writes are asynchronous, `numpy` waits.

    block  device memory, shared with all its views
    """

    def __init__(self, stream: Stream, block: Block, layout: StridedLayout, dtype: np.dtype[Any]) -> None:
        self.block, self._stream, self._layout, self._dtype = block, stream, layout, dtype

    @classmethod
    def zeros(cls, stream: Stream, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> DeviceBuffer:
        """Return a new buffer filled with zeros."""
        kind = np.dtype(dtype)
        block = stream.block(math.prod(shape) * kind.itemsize)
        stream.clear(block)
        return cls(stream, block, StridedLayout.packed(block.address, tuple(shape), kind.itemsize), kind)

    @property
    def shape(self) -> tuple[int, ...]:
        return self._layout.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self._dtype

    @property
    def address(self) -> int:
        return self._layout.address

    @property
    def contiguous(self) -> bool:
        """Whether there are no gaps between rows, as graphs require."""
        return self._layout.contiguous

    def view(self, *index: slice) -> DeviceBuffer:
        return DeviceBuffer(self._stream, self.block, self._layout.view(index), self._dtype)

    def write(self, source: base.Buffer | Array) -> None:
        if source.shape != self.shape or source.dtype != self._dtype:
            raise ValueError(
                f"cannot write {source.dtype} {list(source.shape)} into a buffer of {self._dtype} {list(self.shape)}"
            )
        if isinstance(source, np.ndarray):
            self._stream.upload(source, self._layout)
        elif isinstance(source, DeviceBuffer):
            self._stream.copy(self._layout, source._layout)
        else:
            raise TypeError(f"cannot copy a {type(source).__name__} to a CUDA device; pass its array")

    def numpy(self) -> Array:
        array: Array = self._stream.download(self._layout).view(self._dtype).reshape(self.shape)
        return array
