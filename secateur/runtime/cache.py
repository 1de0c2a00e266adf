# SPDX-License-Identifier: Apache-2.0
"""Keys and values of a conversation: one preallocated buffer each per layer, filled in place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from secateur.artifacts import GraphSpec
from secateur.errors import BadPrompt
from secateur.runtime.backends.base import Backend, Buffer
from secateur.runtime.dimensions import resolve_shapes
from secateur.runtime.rows import Ints


class KVCache:
    """Keys and values [rows,B,Hkv,dh] of every decoder layer; sequence first, so that the filled part is contiguous.

    A segment behind a gate needs fewer rows, so each segment has its own capacity and its own filled length.
    A walk through the segments binds `past` and `slot`, and `advance` at its end makes the new rows count: a walk
    that was interrupted leaves the cache as it was. Where a backend wants them, the first rows are masked ones.
    """

    def __init__(
        self, backend: Backend, segments: Sequence[GraphSpec], capacity: Sequence[int], batch: int, shift: Sequence[int]
    ) -> None:
        self.batch = batch
        self.capacity = tuple(rows + backend.masked_past for rows in capacity)
        self.shift = tuple(shift)
        """How far new rows move up in each segment: the rows dropped before it, or 0 if positions stay original."""
        self._masked = backend.masked_past
        self.clear()
        self._segment: dict[int, int] = {}
        self._buffers: dict[str, Buffer] = {}
        self.bytes = 0
        """Size of all buffers."""
        for i, (segment, rows) in enumerate(zip(segments, self.capacity, strict=True)):
            first, end = segment.layers or (0, 0)
            self._segment.update(dict.fromkeys(range(first, end), i))
            specs = {spec.name: spec for spec in segment.inputs if spec.name.startswith("past_")}
            for name, shape in resolve_shapes(specs.values(), {"P": rows, "B": batch}).items():
                self._buffers[name.removeprefix("past_")] = backend.allocate(shape, specs[name].dtype)
                self.bytes += math.prod(shape) * np.dtype(specs[name].dtype).itemsize

    def clear(self) -> None:
        """Forget all rows."""
        self.position: Ints = np.zeros(self.batch, np.int64)
        """Position of each sample's next row [B]; dropped rows count."""
        self._masks: list[Ints] = [np.zeros((self.batch, self._masked), np.int64) for _ in self.capacity]

    def filled(self, segment: int) -> int:
        """Rows of segment number `segment` that count."""
        return int(self._masks[segment].shape[1])

    def room(self) -> int:
        """Rows that fit behind the filled part in every segment."""
        return min(rows - self.filled(i) for i, rows in enumerate(self.capacity))

    def mask(self, segment: int) -> Ints:
        """[B,filled] int64, 1 = a real row."""
        return self._masks[segment]

    def past(self, layer: int) -> tuple[Buffer, Buffer]:
        """Keys and values of the filled part [filled,B,Hkv,dh]."""
        return self._view(layer, slice(0, self.filled(self._segment[layer])))

    def whole(self, layer: int) -> tuple[Buffer, Buffer]:
        """Keys and values of all rows [capacity,B,Hkv,dh], filled or not."""
        return self._view(layer, slice(None))

    def slot(self, layer: int, rows: int) -> tuple[Buffer, Buffer]:
        """Keys and values of the `rows` rows behind the filled part.

        Raises:
            BadPrompt: there is no room.
        """
        segment = self._segment[layer]
        start = self.filled(segment)
        if start + rows > self.capacity[segment]:
            raise no_room(rows, self.capacity[segment] - start)
        return self._view(layer, slice(start, start + rows))

    def advance(self, masks: Sequence[Ints], lengths: Ints) -> None:
        """Make the rows written into the slots count: a mask [B,rows] per segment, and real rows per sample [B]."""
        self._masks = [np.concatenate([old, new], axis=1) for old, new in zip(self._masks, masks, strict=True)]
        self.position = self.position + lengths

    def _view(self, layer: int, rows: slice) -> tuple[Buffer, Buffer]:
        return self._buffers[f"key.{layer}"].view(rows), self._buffers[f"value.{layer}"].view(rows)


def no_room(rows: int, room: int, answer: int = 0) -> BadPrompt:
    """The error for `rows` rows and `answer` further ones where `room` are free."""
    needed = f"{rows + answer} rows ({rows} of the prompt, {answer} for the answer)" if answer else f"{rows} rows"
    return BadPrompt(
        f"a prompt without room in the cache: it needs {needed}, {max(room, 0)} are free; shorten the prompt, "
        "lower max_new_tokens, or open the chat with a larger capacity"
    )
