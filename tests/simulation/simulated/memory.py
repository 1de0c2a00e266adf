# SPDX-License-Identifier: Apache-2.0
"""Allocations: real host memory at real addresses, and the check that a range lies inside one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from simulated import settings
from simulated.faults import Fault, Refused

ALIGNMENT = 256
UNWRITTEN = 0xFF
"""Every byte of new memory: NaN as a float, -1 as an integer."""

Bytes = NDArray[np.uint8]


@dataclass(eq=False)
class Block:
    """One allocation; kind is "device" or "pinned"."""

    kind: str
    address: int
    data: Bytes
    live: bool = True


@dataclass(frozen=True)
class Range:
    """Part of a block."""

    block: Block
    start: int
    size: int

    @property
    def bytes(self) -> Bytes:
        """The memory itself.

        Raises:
            Fault: it was freed.
        """
        if not self.block.live:
            raise Fault(f"work uses {self.block.kind} memory that was freed")
        return self.block.data[self.start : self.start + self.size]

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The memory as an array."""
        return self.bytes.view(dtype).reshape(shape)

    def overlaps(self, other: Range) -> bool:
        apart = self.start + self.size <= other.start or other.start + other.size <= self.start
        return self.block is other.block and not apart and self.size > 0 and other.size > 0


class Memory:
    """All blocks that are in use."""

    def __init__(self) -> None:
        self._blocks: dict[int, Block] = {}

    def used(self, kind: str) -> int:
        """Bytes of this kind."""
        return sum(block.data.size for block in self.blocks(kind))

    def blocks(self, kind: str) -> list[Block]:
        return [block for block in self._blocks.values() if block.kind == kind]

    def allocate(self, size: int, kind: str) -> int:
        """Address of `size` new bytes; 0 if the size is 0.

        Raises:
            Refused: there is not so much memory.
        """
        if kind == "device" and self.used("device") + size > settings.device_memory():
            raise Refused("cudaErrorMemoryAllocation")
        if size == 0:
            return 0
        raw = np.full(size + ALIGNMENT, UNWRITTEN, np.uint8)
        start = -raw.ctypes.data % ALIGNMENT
        block = Block(kind, raw.ctypes.data + start, raw[start : start + size])
        self._blocks[block.address] = block
        return block.address

    def block(self, address: int, kind: str) -> Block:
        """The block that begins there.

        Raises:
            Refused: there is none of this kind.
        """
        block = self._blocks.get(address)
        if block is None or block.kind != kind:
            raise Refused("cudaErrorInvalidValue")
        return block

    def free(self, block: Block) -> None:
        block.live = False
        block.data[:] = UNWRITTEN
        del self._blocks[block.address]

    def find(self, address: int, size: int) -> Range | None:
        """The range, or None if the address is in no block (pageable memory of the process).

        Raises:
            Fault: it begins in a block and ends outside.
        """
        for block in self._blocks.values():
            start = address - block.address
            if 0 <= start < block.data.size or (start == block.data.size and size == 0):
                if start + size > block.data.size:
                    raise Fault(f"{size} bytes at {start} of a block of {block.data.size}")
                return Range(block, start, size)
        return None

    def need(self, address: int, size: int, kind: str, what: str) -> Range:
        """The range.

        Raises:
            Fault: it is not in one block of this kind.
        """
        found = self.find(address, size)
        if found is None or found.block.kind != kind:
            place = found.block.kind if found else "unknown"
            raise Fault(f"{what} is at {address:#x}, which is {place} memory, not {kind}")
        return found
