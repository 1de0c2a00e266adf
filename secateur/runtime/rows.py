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
    lengths     each sample's real rows                       [B]
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
