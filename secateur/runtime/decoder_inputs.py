# SPDX-License-Identifier: Apache-2.0
"""Inputs of the decoder: token ids, masks and positions of a batch, and the vision tokens of its images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.bundle.layout import Ints, Layout
from secateur.runtime.backends.base import Buffer
from secateur.runtime.receipt import GateReceipt


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
        positions = np.tile(positions[:, None], (1, len(questions), 1))  # [A,B,S]
        return replace(rows, position_ids=positions if layout.axes > 1 else positions[0])

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


@dataclass(frozen=True)
class EncodedImages:
    """Vision tokens after the encoder and its gate: B samples of I images each, or one sample that a batch shares.

    tokens        [B*I,k,D] vision tokens of each image, in a buffer that no run overwrites
    planes        DeepStack planes of the same shape, added after the first decoder layers
    vision_index  [B,I*k] original indices of the tokens in the sample
    gates         receipt of the gate in the encoder, if there is one
    """

    tokens: Buffer
    planes: tuple[Buffer, ...]
    vision_index: Ints
    gates: tuple[GateReceipt, ...] = ()

    def write(self, hidden: Buffer, planes: Iterable[Buffer], spans: Sequence[tuple[int, int]]) -> None:
        """Write the tokens to their rows in `hidden` [B,S,D], and each plane to its rows in `planes`.

        spans  (start, tokens) of each run of vision rows; the runs of an image are in the order of its tokens
        """
        self._place(self.tokens, hidden, spans)
        for tokens, rows in zip(self.planes, planes, strict=True):
            self._place(tokens, rows, spans)

    def _place(self, tokens: Buffer, rows: Buffer, spans: Sequence[tuple[int, int]]) -> None:
        samples = len(self.vision_index)
        images = tokens.shape[0] // samples
        runs = len(spans) // images
        for b in range(rows.shape[0]):
            for number, (start, count) in enumerate(spans):
                image, run = divmod(number, runs)
                first = sum(n for _, n in spans[:run])
                source = (b * images if samples > 1 else 0) + image
                part = tokens.view(slice(source, source + 1), slice(first, first + count))
                if count:
                    rows.view(slice(b, b + 1), slice(start, start + count)).write(part)
