# SPDX-License-Identifier: Apache-2.0
"""Answers, and receipts of their cost and of the vision tokens that were kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.layout import Ints, Layout
from secateur.bundle.manifest import GateRef
from secateur.bundle.sampling import GREEDY, Sampling
from secateur.errors import BadBundle
from secateur.runtime.preprocess import Fitted


@dataclass(frozen=True)
class GateReceipt:
    """Numbers of vision tokens before a gate, requested by the schedule, and actually kept (`applied`).

    `layer` is the decoder layer after the gate; `kind` is that of `bundle.schedule.Gate`.
    """

    layer: int
    before: int
    requested: int
    applied: int
    kind: str = "prune"


def gate_receipt(gate: GateRef, before: Ints, after: Ints, layout: Layout) -> GateReceipt:
    """Check that a gate kept distinct, ascending tokens, a subset of those before, and the quota of each view.

    before, after  [B,N] and [B,k] original indices of the vision tokens

    Raises:
        BadBundle: the kept tokens differ from the schedule.
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
    images            how each image was fitted, see `preprocess.Fitted`
    gates             each gate of the conversation, in order
    segment_rows      rows that each segment read before the first token (of the longest sample in a batch)
    cache_bytes       size of keys and values of the whole batch
    prompt_rows       rows of this turn's prompt before any gate; the first turn includes the images
    generated_tokens  number of tokens, including a stop token
    milliseconds      times of the whole batch. First turn: preprocess, encode (pixels to vision tokens), prefill (embed
                      to logits), and every graph in the latter two by its name. Every turn: prefill, first_token
                      (preprocess, encode and prefill), decode, decode_per_token, total
    sampling          settings of the answer
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
    sampling: Sampling = GREEDY

    def as_dict(self) -> dict[str, Any]:
        """Return the receipt as plain values for JSON."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Answer:
    """One answer.

    text          the answer, without special tokens, up to the first stop string
    tokens        generated ids; the last one is a stop token, unless max_new_tokens or a stop string ended the answer
    kept          original vision-token indices (raster order, ascending) kept by each gate
    timings       milliseconds per stage, see `Receipt`
    first_logits  [V] float32 logits of the first token
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
    """Adds up milliseconds per stage. Device times are added after the device is synchronized."""

    def __init__(self, already: Mapping[str, float] | None = None) -> None:
        self.milliseconds: dict[str, float] = dict(already or {})

    def add(self, stage: str, milliseconds: float) -> None:
        """Add `milliseconds` to `stage`."""
        self.milliseconds[stage] = self.milliseconds.get(stage, 0.0) + milliseconds

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, (time.perf_counter() - start) * 1000)
