# SPDX-License-Identifier: Apache-2.0
"""Device memory and pinned host memory for the work of one CUDA stream."""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.device.cudart import check

GRAIN = 512
"""Block sizes are multiples of this many bytes, so that a block can be reused for a buffer of similar size."""
PAGE = 4096


class Block:
    """Device memory of `size` bytes; it is reused after the last reference to this object is gone."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


class DeviceMemory:
    """Allocates blocks of device memory and reuses idle ones.

    All work is on one stream, so an idle block may be reused immediately: the new work runs after the old work. A block
    may be freed only after the stream is synchronized.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._owned: set[int] = set()
        self._idle: defaultdict[int, list[int]] = defaultdict(list)

    @property
    def idle(self) -> int:
        """Bytes of idle blocks."""
        return sum(size * len(addresses) for size, addresses in self._idle.items())

    def take(self, size: int) -> Block:
        """Return an uninitialized block of at least `size` bytes; its address is never 0.

        Raises:
            SecateurError: there is not enough memory.
        """
        size = max(1, -(-size // GRAIN)) * GRAIN
        if not self._idle[size]:
            answer = self._cudart.cudaMalloc(size)
            self._cudart.cudaGetLastError()  # clears the error, so that the next call does not report it
            self._owned.add(address := int(check(answer)))
            self._idle[size].append(address)
        block = Block(self._idle[size].pop(), size)
        weakref.finalize(block, self._idle[size].append, block.address)
        return block

    def trim(self) -> None:
        """Free all idle blocks."""
        for addresses in self._idle.values():
            while addresses:
                self._free(addresses.pop())

    def close(self) -> None:
        """Free all blocks."""
        for address in list(self._owned):
            self._free(address)

    def _free(self, address: int) -> None:
        self._owned.remove(address)
        check(self._cudart.cudaFree(address))


class PinnedMemory:
    """Host memory for asynchronous copies; it is in use from `take` to `release`."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._idle: defaultdict[int, list[int]] = defaultdict(list)
        self._taken: list[tuple[int, int]] = []

    @property
    def taken(self) -> int:
        """Bytes in use."""
        return sum(size for size, _ in self._taken)

    def take(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the address of `size` bytes, and an array of them."""
        room = max(PAGE, 1 << (size - 1).bit_length())
        if not self._idle[room]:
            flags = self._cudart.cudaHostAllocDefault
            self._idle[room].append(int(check(self._cudart.cudaHostAlloc(room, flags))))
        address = self._idle[room].pop()
        self._taken.append((room, address))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * room).from_address(address))[:size]

    def release(self) -> None:
        """Make all memory available again; call it after the stream is synchronized."""
        for size, address in self._taken:
            self._idle[size].append(address)
        self._taken.clear()

    def close(self) -> None:
        """Free all memory."""
        self.release()
        for addresses in self._idle.values():
            while addresses:
                check(self._cudart.cudaFreeHost(addresses.pop()))
