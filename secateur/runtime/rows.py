# SPDX-License-Identifier: Apache-2.0
"""Token sequences of a batch as the rows of one graph call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """Rows of one call, padded on the right; all int64.

    input_ids, attention_mask (1 = a real row), position_ids  [B,S]
    last_index  each sample's last real row                   [B]
    lengths     each sample's real rows, dropped ones too     [B]
    """

    input_ids: Ints
    attention_mask: Ints
    position_ids: Ints
    last_index: Ints
    lengths: Ints

    @classmethod
    def pad(cls, sequences: Sequence[Sequence[int]], filler: int, start: Ints | None = None) -> Rows:
        """Rows of `sequences`, filled with `filler`; positions count from `start` [B] (0 if None)."""
        lengths = np.array([len(s) for s in sequences], np.int64)
        columns = np.arange(lengths.max(), dtype=np.int64)
        mask = (columns < lengths[:, None]).astype(np.int64)
        ids = np.full(mask.shape, filler, np.int64)
        for row, sequence in zip(ids, sequences, strict=True):
            row[: len(sequence)] = sequence
        positions = columns + (np.zeros_like(lengths) if start is None else start)[:, None]
        return cls(ids, mask, positions, np.maximum(lengths - 1, 0), lengths)

    def without(self, start: int, kept: Ints, before: int, compact: bool) -> Rows:
        """Rows of which only the vision tokens `kept` [B,k] of the `before` from row `start` on are left.

        With `compact` positions the kept tokens follow each other, and what stands behind the image moves up.
        """
        batch, rows = self.input_ids.shape
        keep = kept.shape[1]
        head, tail = (np.tile(np.arange(*ends), (batch, 1)) for ends in ((0, start), (start + before, rows)))
        columns = np.concatenate([head, start + kept, tail], axis=1)
        ids, mask, positions = (
            np.take_along_axis(x, columns, axis=1) for x in (self.input_ids, self.attention_mask, self.position_ids)
        )
        if compact:
            image = np.arange(start, start + keep)
            positions = np.concatenate(
                [positions[:, :start], np.tile(image, (batch, 1)), tail - (before - keep)], axis=1
            )
        return Rows(ids, mask, positions, self.last_index - (before - keep), self.lengths)
