# SPDX-License-Identifier: Apache-2.0
"""A CUDA stream and tensors in its memory: work runs in order, and only `download` and `synchronize` wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BackendMissing, SecateurError
from secateur.runtime.backends.base import Array, Buffer
from secateur.runtime.device.cudart import INSTEAD, Clock, check, import_cudart
from secateur.runtime.device.memory import Block, DeviceMemory, PinnedMemory
from secateur.runtime.device.strides import StridedLayout, copies
from secateur.runtime.receipt import Stopwatch

STAGED = 64 << 20
"""Limit of bytes in pending uploads; above it an upload waits."""
IDLE = 256 << 20
"""Idle device memory in bytes that is kept for reuse; `synchronize` frees the rest."""


class Stream:
    """The stream, its memory and its clock.

    Raises:
        BackendMissing: cuda-python, a driver or a device is missing.
    """

    def __init__(self) -> None:
        self.cudart = cudart = import_cudart()
        try:
            check(cudart.cudaSetDevice(0))
            self._stream = check(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking))
        except (RuntimeError, SecateurError) as problem:  # cuda-python 12 raises RuntimeError without a driver
            raise BackendMissing(f"CUDA found no device ({problem}); check the driver, {INSTEAD}") from None
        self.handle = int(self._stream)
        self.capturing = False
        self.busy = False
        """Whether work was enqueued since the last `synchronize`; callers that enqueue work set it."""
        self._open = True
        self._device, self._pinned = DeviceMemory(cudart), PinnedMemory(cudart)
        self._clock = Clock(cudart, self._stream)
        self._later: list[Callable[[], None]] = []

    def block(self, size: int) -> Block:
        """Return uninitialized device memory.

        Raises:
            SecateurError: there is not enough memory, the stream is closed, or a step is being recorded.
        """
        self._check_host()
        try:
            return self._device.take(size)
        except SecateurError:
            if not self._device.idle:
                raise
        self.synchronize()
        self._device.trim()
        return self._device.take(size)

    def clear(self, block: Block) -> None:
        """Fill a block with zeros."""
        self.busy = True
        check(self.cudart.cudaMemsetAsync(block.address, 0, block.size, self._stream))

    def upload(self, array: NDArray[Any], target: StridedLayout) -> None:
        """Copy an array to the device."""
        self._check_host()
        if self._pinned.taken > STAGED:
            self.synchronize()
        address, staged = self._pinned.take(array.nbytes)
        staged.view(array.dtype).reshape(array.shape)[...] = array
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(target, StridedLayout.packed(address, array.shape, array.itemsize), kind)

    def download(self, source: StridedLayout) -> NDArray[np.uint8]:
        """Wait, and return the bytes of all elements without gaps."""
        self._check_host()
        address, staged = self._pinned.take(source.nbytes)
        kind = self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(StridedLayout.packed(address, source.shape, source.itemsize), source, kind)
        self.synchronize()
        return staged.copy()

    def copy(self, target: StridedLayout, source: StridedLayout) -> None:
        """Copy on the device, between layouts of the same shape."""
        self._check_open()
        self._copy(target, source, self.cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice)

    @contextmanager
    def clock(self, watch: Stopwatch, stage: str) -> Iterator[None]:
        """Add the device time of the work in this block to `stage`, at the next `synchronize`."""
        self._check_open()
        if self.capturing:  # recorded work does not run yet
            yield
            return
        start = self._clock.mark()
        try:
            yield
        finally:
            self._clock.note(watch, stage, start, self._clock.mark())
        if not self.busy:  # the block already waited, so its time can be read now
            self.synchronize()

    def record(self, step: Callable[[], None]) -> Any:
        """Record the work that `step` enqueues as a CUDA graph, without running it; see `launch` and `forget`.

        Raises:
            SecateurError: something in `step` cannot be recorded.
        """
        cudart = self.cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cudart.cudaStreamBeginCapture(self._stream, mode))
        self.capturing = True
        try:
            step()
        finally:
            self.capturing = False
            error, graph = cudart.cudaStreamEndCapture(self._stream)
            cudart.cudaGetLastError()  # clears the error, so that the next call does not report it
            if int(error) == 0:
                self._later.append(lambda: check(cudart.cudaGraphDestroy(graph)))
        check((error,))
        return check(cudart.cudaGraphInstantiate(graph, 0))

    def launch(self, recorded: Any) -> None:
        """Replay a recorded graph."""
        self.busy = True
        check(self.cudart.cudaGraphLaunch(recorded, self._stream))

    def forget(self, recorded: Any) -> None:
        """Free a recorded graph after its work has finished."""
        self._later.append(lambda: check(self.cudart.cudaGraphExecDestroy(recorded)))

    def synchronize(self) -> None:
        """Wait for all enqueued work, and free the memory it used."""
        if not self._open:
            return
        self._check_host()
        check(self.cudart.cudaStreamSynchronize(self._stream))
        self.busy = False
        self._pinned.release()
        self._clock.read()
        while self._later:
            self._later.pop()()
        if self._device.idle > IDLE:
            self._device.trim()

    def close(self) -> None:
        """Wait, then free everything; buffers cannot be used afterwards."""
        if not self._open:
            return
        self.synchronize()
        self._open = False
        for part in (self._device, self._pinned, self._clock):
            part.close()
        check(self.cudart.cudaStreamDestroy(self._stream))

    def _copy(self, target: StridedLayout, source: StridedLayout, kind: Any) -> None:
        self.busy = True
        for x in copies(target, source):
            if x.height == 1:
                answer = self.cudart.cudaMemcpyAsync(x.target, x.source, x.width, kind, self._stream)
            else:
                answer = self.cudart.cudaMemcpy2DAsync(
                    x.target, x.target_pitch, x.source, x.source_pitch, x.width, x.height, kind, self._stream
                )
            check(answer)

    def _check_open(self) -> None:
        if not self._open:
            raise SecateurError("the backend is closed; open it again")

    def _check_host(self) -> None:
        self._check_open()
        if self.capturing:
            raise SecateurError("a recorded step may only run graphs; it cannot allocate, upload or wait")


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

    def write(self, source: Buffer | Array) -> None:
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
