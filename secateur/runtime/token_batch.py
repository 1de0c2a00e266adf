# SPDX-License-Identifier: Apache-2.0
"""Token ids, masks and positions of a batch, as input of one graph call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.layout import Layout

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TokenBatch:
    """Rows of one call, padded on the right; all int64.

    input_ids       [B,S]
    attention_mask  [B,S]; 1: a real row
    position_ids    [B,S]; [3,B,S] for a prompt with M-RoPE
    last_index      [B] index of each sample's last real row
    lengths         [B] number of each sample's real rows, including dropped ones
    """

    input_ids: Ints
    attention_mask: Ints
    position_ids: Ints
    last_index: Ints
    lengths: Ints

    @classmethod
    def pad(cls, sequences: Sequence[Sequence[int]], filler: int, start: Ints | None = None) -> TokenBatch:
        """Pad `sequences` with `filler`; positions start at `start` [B] (default: 0)."""
        lengths = np.array([len(s) for s in sequences], np.int64)
        columns = np.arange(lengths.max(), dtype=np.int64)
        mask = (columns < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, filler, np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        positions = columns + (np.zeros_like(lengths) if start is None else start)[:, None]
        return cls(ids, mask, positions, np.maximum(lengths - 1, 0), lengths)

    @classmethod
    def prompt(cls, layout: Layout, questions: Sequence[Sequence[int]], filler: int) -> TokenBatch:
        """Return the rows of a first turn: those of `layout` (`filler` for vision tokens), then the question."""
        start = layout.ids(filler)
        rows = cls.pad([[*start, *question] for question in questions], filler)
        positions = np.array(layout.numbered(rows.input_ids.shape[1]), np.int64)
        return replace(rows, position_ids=on_axes(np.tile(positions[:, None], (1, len(questions), 1))))

    def without(self, layout: Layout, kept: Ints, compact: bool) -> TokenBatch:
        """Return a prompt with only the vision tokens `kept` [B,k].

        With `compact` positions the remaining rows are renumbered.
        """
        batch, rows = self.input_ids.shape
        text = np.array([*layout.text_rows(), *range(layout.rows, rows)], np.int64)
        columns = np.sort(np.concatenate([np.tile(text, (batch, 1)), np.array(layout.vision_rows)[kept]], axis=1))
        positions = self.position_ids
        if compact:  # positions are consecutive, so the first ones are those of the remaining rows
            positions = positions[..., : columns.shape[1]]
        else:
            positions = np.take_along_axis(
                positions, np.broadcast_to(columns, (*positions.shape[:-1], columns.shape[1])), axis=-1
            )
        ids, mask = (np.take_along_axis(x, columns, axis=1) for x in (self.input_ids, self.attention_mask))
        dropped = rows - columns.shape[1]
        return TokenBatch(ids, mask, positions, self.last_index - dropped, self.lengths)


def on_axes(positions: Ints) -> Ints:
    """Return positions [A,B,S] in the shape of the graphs: [B,S] for a single axis."""
    return positions[0] if len(positions) == 1 else positions
