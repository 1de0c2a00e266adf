# SPDX-License-Identifier: Apache-2.0
"""Weight files of a bundle in device memory: each file is read once, for all graphs that use it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from secateur.bundle.manifest import WeightSpec
from secateur.runtime.device.memory import Block
from secateur.runtime.device.stream import DeviceBuffer, Stream
from secateur.runtime.device.strides import StridedLayout

ALIGNMENT = 256
"""Bytes; every tensor address must be a multiple of this (IExecutionContext::setTensorAddress)."""
CHUNK = 32 << 20
"""Bytes that are copied at once, which limits the pinned memory."""


class DeviceWeights:
    """Copies of weight files on the device of a stream."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._files: dict[Path, Block] = {}

    def buffer(self, path: Path, weight: WeightSpec) -> DeviceBuffer:
        """Return the buffer of a weight in the file `path`; it shares the memory of the file if it is aligned there.

        Raises:
            SecateurError: there is not enough memory on the device.
        """
        if path not in self._files:
            self._files[path] = self._read(path)
        block, dtype = self._files[path], np.dtype(weight.dtype)
        layout = StridedLayout.packed(block.address + weight.offset, weight.shape, dtype.itemsize)
        found = DeviceBuffer(self._stream, block, layout, dtype)
        if found.address % ALIGNMENT == 0:
            return found
        aligned = DeviceBuffer.zeros(self._stream, weight.shape, dtype)
        aligned.write(found)
        return aligned

    def _read(self, path: Path) -> Block:
        mapped = np.memmap(path, mode="r")
        block = self._stream.block(mapped.nbytes)
        for start in range(0, mapped.nbytes, CHUNK):
            part = mapped[start : start + CHUNK]
            self._stream.upload(part, StridedLayout.packed(block.address + start, part.shape, 1))
        return block
