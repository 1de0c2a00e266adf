# SPDX-License-Identifier: Apache-2.0
"""Answers, and receipts of what was actually run."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.layout import Layout
from secateur.bundle.manifest import GateRef
from secateur.errors import BadBundle
from secateur.runtime.canvas import Fitted
from secateur.runtime.token_batch import Ints


@dataclass(frozen=True)
class GateReceipt:
    """Vision tokens before the gate, requested by the schedule, and actually kept, at decoder layer `layer`.

    kind is that of bundle.schedule.Gate.
    """

    layer: int
    before: int
    requested: int
    applied: int
    kind: str = "prune"


def gate_receipt(gate: GateRef, before: Ints, after: Ints, layout: Layout) -> GateReceipt:
    """Check what the gate actually kept: distinct tokens, ascending, a subset of those before, each view's quota.

    before, after  [B,N] and [B,k] original indices of the vision tokens

    Raises:
        BadBundle: it is not what the schedule requests.
    """
    applied = min(
        int(np.isin(np.unique(new), old).sum()) if (np.diff(new) > 0).all() else 0
        for old, new in zip(before, after, strict=True)
    )
    if applied != gate.keep or after.shape[1] != gate.keep:
        raise BadBundle(
            f"gate '{gate.graph}' at layer {gate.layer} kept {applied} of {before.shape[1]} vision tokens, "
            f"the schedule asks for {gate.keep}; export the bundle again"
        )
    for indices in after:
        quotas = tuple(int(np.isin(indices, own).sum()) for own in layout.members)
        if quotas != gate.of_views:
            raise BadBundle(
                f"gate '{gate.graph}' at layer {gate.layer} kept {quotas} tokens of the views, the schedule asks for "
                f"{gate.of_views}; export the bundle again"
            )
    return GateReceipt(gate.layer, before.shape[1], gate.keep, applied, gate.kind)


@dataclass(frozen=True)
class Receipt:
    """Cost of one answer.

    schedule          name of the schedule that was run
    image_size        WIDTHxHEIGHT of the canvas that the images were fitted to
    images            how each of them was: the canvas (height, width), pixels of it per pixel of the image down and
                      across, rows above and below, columns left and right of it that show no image (below 0: cut), and
                      the way (bundle.preprocess.FITS, or "processor": the model's own)
    gates             each gate of the conversation, in order
    segment_rows      rows each segment read before the first token (of the longest sample, if a batch)
    cache_bytes       keys and values, of the whole batch
    prompt_rows       rows of this turn's prompt before any gate, image included in the first turn
    generated_tokens  a stop token included
    milliseconds      of the whole batch. First turn: preprocess, encode (all between pixels and vision tokens), prefill
                      (embed to logits), and within these two every graph by its name: vision, projector, embed,
                      segments and gates. first_token (preprocess, encode and prefill), decode, decode_per_token, total
    """

    schedule: str
    image_size: str
    images: tuple[Fitted, ...]
    gates: tuple[GateReceipt, ...]
    segment_rows: tuple[int, ...]
    cache_bytes: int
    prompt_rows: int
    generated_tokens: int
    milliseconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """The receipt as plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Answer:
    """One answer.

    text          the answer, without special tokens
    tokens        generated ids; the last one is a stop token unless max_new_tokens cut the answer
    kept          original vision-token indices (raster order, ascending) that stay after each gate
    timings       milliseconds per stage, see Receipt
    first_logits  [V] float32, from which the first token was taken
    """

    text: str
    tokens: tuple[int, ...]
    kept: tuple[tuple[int, ...], ...]
    receipt: Receipt
    first_logits: NDArray[np.float32] = field(repr=False, compare=False)

    @property
    def timings(self) -> dict[str, float]:
        return self.receipt.milliseconds


class Stopwatch:
    """Adds up milliseconds per stage. Device times are added when the device was synchronized."""

    def __init__(self, already: Mapping[str, float] | None = None) -> None:
        self.milliseconds: dict[str, float] = dict(already or {})

    def add(self, stage: str, milliseconds: float) -> None:
        """Add to a stage."""
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + milliseconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time spent inside to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) * 1000)
