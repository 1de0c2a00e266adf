# SPDX-License-Identifier: Apache-2.0
"""Vision tokens of the images of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from secateur.runtime.backends.base import Buffer
from secateur.runtime.receipt import GateReceipt
from secateur.runtime.token_batch import Ints


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
