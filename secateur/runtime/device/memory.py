# SPDX-License-Identifier: Apache-2.0
"""Memory for the work of one CUDA stream: on the device, and pinned on the host."""

from __future__ import annotations

import ctypes
import weakref
from collections import defaultdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime.device.cudart import check

GRAIN = 512
"""Device memory comes in multiples of this, so that a block fits the next buffer of about its size."""
PAGE = 4096


class Block:
    """Device memory of `size` bytes; it can be taken again when nothing refers to this object."""

    def __init__(self, address: int, size: int) -> None:
        self.address, self.size = address, size


class DeviceMemory:
    """Owns device memory blocks and reuses idle ones.

    There is one stream only, so an idle block may be reused immediately: earlier work that uses it comes before the new
    work in the stream. It may be freed only after the stream was synchronized.
    """

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._owned: set[int] = set()
        self._idle: defaultdict[int, list[int]] = defaultdict(list)

    @property
    def idle(self) -> int:
        """Bytes."""
        return sum(size * len(addresses) for size, addresses in self._idle.items())

    def take(self, size: int) -> Block:
        """A block of at least `size` bytes, with anything in it; its address is never 0.

        Raises:
            SecateurError: there is not so much memory.
        """
        size = max(1, -(-size // GRAIN)) * GRAIN
        if not self._idle[size]:
            answer = self._cudart.cudaMalloc(size)
            self._cudart.cudaGetLastError()  # an error is told once, and must not show in the next call of somebody
            self._owned.add(address := int(check(answer)))
            self._idle[size].append(address)
        block = Block(self._idle[size].pop(), size)
        weakref.finalize(block, self._idle[size].append, block.address)
        return block

    def trim(self) -> None:
        """Free what is idle."""
        for addresses in self._idle.values():
            while addresses:
                self._free(addresses.pop())

    def close(self) -> None:
        """Free everything."""
        for address in list(self._owned):
            self._free(address)

    def _free(self, address: int) -> None:
        self._owned.remove(address)
        check(self._cudart.cudaFree(address))


class PinnedMemory:
    """Host memory that the device copies from and to by itself; what is taken is in use up to `release`."""

    def __init__(self, cudart: Any) -> None:
        self._cudart = cudart
        self._idle: defaultdict[int, list[int]] = defaultdict(list)
        self._taken: list[tuple[int, int]] = []

    @property
    def taken(self) -> int:
        """Bytes."""
        return sum(size for size, _ in self._taken)

    def take(self, size: int) -> tuple[int, NDArray[np.uint8]]:
        """The address of `size` bytes, and an array over them."""
        room = max(PAGE, 1 << (size - 1).bit_length())
        if not self._idle[room]:
            flags = self._cudart.cudaHostAllocDefault
            self._idle[room].append(int(check(self._cudart.cudaHostAlloc(room, flags))))
        address = self._idle[room].pop()
        self._taken.append((room, address))
        return address, np.ctypeslib.as_array((ctypes.c_uint8 * room).from_address(address))[:size]

    def release(self) -> None:
        """The stream is at rest: everything can be taken again."""
        for size, address in self._taken:
            self._idle[size].append(address)
        self._taken.clear()

    def close(self) -> None:
        """Free everything."""
        self.release()
        for addresses in self._idle.values():
            while addresses:
                check(self._cudart.cudaFreeHost(addresses.pop()))
