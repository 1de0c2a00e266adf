# SPDX-License-Identifier: Apache-2.0
"""KV cache of one conversation: preallocated buffers for every layer, filled in place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from secateur.bundle.layout import Ints
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.symbolic_shape import resolve_shapes
from secateur.errors import BadBundle, BadPrompt
from secateur.runtime.backends.base import Backend, Buffer

ROUNDED = 64
"""With fixed decode shapes, cache rows are a multiple of this, so that later questions can reuse a recorded step."""


def rounded(rows: int, most: int | None) -> int:
    """Round `rows` up for a cache with decode steps of fixed shapes, to at most `most`."""
    more = -(-rows // ROUNDED) * ROUNDED
    return more if most is None else min(more, most)


class KVCache:
    """Keys and values [rows,B,Hkv,dh] of every decoder layer; rows come first, so that the filled part is contiguous.

    A segment after a gate needs fewer rows, so each segment has its own capacity and filled length.
    A run of the segments reads `past`, writes to `slot`, and calls `advance` at its end to commit the new rows: an
    interrupted run leaves the cache unchanged. If the backend requires it, the first rows are masked.

    ahead  position after the images minus the number of rows up to there (negative with M-RoPE)
    """

    def __init__(
        self,
        backend: Backend,
        segments: Sequence[GraphSpec],
        capacity: Sequence[int],
        batch: int,
        shift: Sequence[int],
        ahead: int = 0,
    ) -> None:
        self.batch, self.ahead = batch, ahead
        self.capacity = tuple(rows + backend.masked_past for rows in capacity)
        self.shift = tuple(shift)
        """Position shift of new rows in each segment: number of rows dropped before it; 0 for original positions."""
        self._masked = backend.masked_past
        self.clear()
        self._places: dict[int, tuple[int, int]] = {}
        """Segment of each layer, and the index of its keys in the segment's block (its values are next)."""
        self._blocks: list[Buffer] = []
        """Memory of each segment [2 * layers * capacity,B,Hkv,dh]: for each layer its keys, then its values."""
        self.bytes = 0
        """Size of all blocks."""
        for i, (segment, rows) in enumerate(zip(segments, self.capacity, strict=True)):
            layers = range(*(segment.layers or (0, 0)))
            self._places.update({layer: (i, 2 * n) for n, layer in enumerate(layers)})
            shape, dtype = row(segment, batch)
            self._blocks.append(backend.allocate((2 * len(layers) * rows, *shape), dtype))
            self.bytes += 2 * len(layers) * rows * math.prod(shape) * dtype.itemsize

    def clear(self) -> None:
        """Remove all rows."""
        self.position: Ints = np.full(self.batch, self.ahead, np.int64)
        """Position of each sample's next row [B]; dropped rows are counted."""
        self._masks: list[Ints] = [np.zeros((self.batch, self._masked), np.int64) for _ in self.capacity]

    def filled(self, segment: int) -> int:
        """Number of filled rows of segment number `segment`."""
        return int(self._masks[segment].shape[1])

    def room(self) -> int:
        """Free rows after the filled part, minimum over the segments."""
        return min(rows - self.filled(i) for i, rows in enumerate(self.capacity))

    def mask(self, segment: int) -> Ints:
        """Return the attention mask [B,filled] int64 of a segment; 1: a real row."""
        return self._masks[segment]

    def past(self, layer: int) -> tuple[Buffer, Buffer]:
        """Return keys and values of the filled part [filled,B,Hkv,dh]."""
        return self._view(layer, 0, self.filled(self._places[layer][0]))

    def whole(self, layer: int) -> tuple[Buffer, Buffer]:
        """Return keys and values of all rows [capacity,B,Hkv,dh], filled or not."""
        return self._view(layer, 0, self.capacity[self._places[layer][0]])

    def slot(self, layer: int, rows: int) -> tuple[Buffer, Buffer]:
        """Return the places for keys and values of `rows` new rows, after the filled part.

        Raises:
            BadPrompt: they do not fit.
        """
        segment = self._places[layer][0]
        self.check_room(segment, rows)
        return self._view(layer, self.filled(segment), rows)

    def append(self, segment: int, new: Buffer) -> None:
        """Copy one row of each layer's keys and values [2 * layers,B,Hkv,dh] to the end of the filled part."""
        self._blocks[segment].view(slice(self.filled(segment), None, self.capacity[segment])).write(new)

    def check_room(self, segment: int, rows: int) -> None:
        """Check that `rows` rows fit after the filled part.

        Raises:
            BadPrompt: they do not fit.
        """
        room = self.capacity[segment] - self.filled(segment)
        if rows > room:
            raise no_room(rows, room)

    def advance(self, masks: Sequence[Ints], lengths: Ints) -> None:
        """Commit the rows written into the slots: a mask [B,rows] per segment, and real rows per sample [B]."""
        self._masks = [np.concatenate([old, new], axis=1) for old, new in zip(self._masks, masks, strict=True)]
        self.position = self.position + lengths

    def _view(self, layer: int, start: int, rows: int) -> tuple[Buffer, Buffer]:
        segment, number = self._places[layer]
        first = [n * self.capacity[segment] + start for n in (number, number + 1)]
        key, value = (self._blocks[segment].view(slice(at, at + rows)) for at in first)
        return key, value


def row(segment: GraphSpec, batch: int) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Return shape [B,Hkv,dh] and dtype of one row of keys or values in a segment.

    Raises:
        BadBundle: the layers differ.
    """
    past = [spec for spec in segment.inputs if spec.name.startswith("past_")]
    kinds = {(spec.shape, spec.dtype) for spec in past}
    if len(kinds) != 1:
        raise BadBundle(
            f"graph '{segment.name}' has keys and values of {len(kinds)} shapes or dtypes; export the bundle again"
        )
    shape = resolve_shapes(past, {"P": 0, "B": batch})[past[0].name]
    return shape[1:], np.dtype(past[0].dtype)


def no_room(rows: int, room: int, answer: int = 0) -> BadPrompt:
    """Return the error for `rows` prompt rows and `answer` generated rows if only `room` rows are free."""
    needed = f"{rows + answer} rows ({rows} of the prompt, {answer} for the answer)" if answer else f"{rows} rows"
    return BadPrompt(
        f"no room in the cache: the prompt needs {needed}, {max(room, 0)} are free; shorten the prompt, lower "
        "max_new_tokens, open a chat with a larger capacity, or build engines with a larger --max-new-tokens"
    )
