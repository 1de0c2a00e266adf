# SPDX-License-Identifier: Apache-2.0
"""Strided memory layout of a tensor, and the smallest list of 2D copies between two layouts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from secateur.runtime.backends.base import check_slices

LARGEST_PITCH = (1 << 31) - 1
"""Maximum pitch of a 2D copy in bytes (device property memPitch, the same for all known devices)."""


@dataclass(frozen=True)
class StridedLayout:
    """A tensor in memory.

    address   address of the first element
    strides   bytes from one element of an axis to the next; rows are in order and do not overlap
    itemsize  bytes of an element
    """

    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    itemsize: int

    @classmethod
    def packed(cls, address: int, shape: tuple[int, ...], itemsize: int) -> StridedLayout:
        """Return the layout of a tensor without gaps."""
        strides = tuple(itemsize * math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
        return cls(address, shape, strides, itemsize)

    @property
    def nbytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * self.itemsize

    @property
    def contiguous(self) -> bool:
        """Whether there are no gaps."""
        packed = StridedLayout.packed(self.address, self.shape, self.itemsize).strides
        axes = zip(self.shape, self.strides, packed, strict=True)
        return self.nbytes == 0 or all(size == 1 or stride == want for size, stride, want in axes)

    def view(self, index: tuple[slice, ...]) -> StridedLayout:
        """Return a part of the tensor, see `Buffer.view`."""
        check_slices(index)
        address, shape, strides = self.address, list(self.shape), list(self.strides)
        for axis, part in enumerate(index):
            start, stop, step = part.indices(shape[axis])
            address += start * strides[axis]
            shape[axis] = len(range(start, stop, step))
            strides[axis] *= step
        return StridedLayout(address, tuple(shape), tuple(strides), self.itemsize)


@dataclass(frozen=True)
class Copy:
    """A copy of `height` rows of `width` bytes; a pitch is the number of bytes between the starts of two rows."""

    target: int
    target_pitch: int
    source: int
    source_pitch: int
    width: int
    height: int


def copies(target: StridedLayout, source: StridedLayout) -> Iterator[Copy]:
    """Yield copies of all elements of `source` to `target`, which has the same shape and itemsize."""
    if source.nbytes == 0:
        return
    *loops, (height, target_pitch, source_pitch), (width, _, _) = _axes(target, source)
    for index in np.ndindex(*(size for size, _, _ in loops)):
        to, off = (sum(i * axis[side] for i, axis in zip(index, loops, strict=True)) for side in (1, 2))
        yield Copy(target.address + to, target_pitch, source.address + off, source_pitch, width, height)


def _axes(target: StridedLayout, source: StridedLayout) -> list[tuple[int, int, int]]:
    """Return (size, target stride, source stride) of each axis after merging; at least two, the last one in bytes.

    Axes that are equally spaced on both sides are merged. Rows too far apart for a pitch are copied one by one.
    """
    axes = [(source.itemsize, 1, 1)]
    for size, there, here in reversed(list(zip(source.shape, target.strides, source.strides, strict=True))):
        inner, inner_there, inner_here = axes[0]
        if (there, here) == (inner * inner_there, inner * inner_here):
            axes[0] = (size * inner, inner_there, inner_here)
        elif size > 1:
            axes.insert(0, (size, there, here))
    width = axes[-1][0]
    if len(axes) == 1 or max(axes[-2][1:]) > LARGEST_PITCH:
        axes.insert(-1, (1, width, width))
    return axes
