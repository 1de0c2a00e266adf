# SPDX-License-Identifier: Apache-2.0
"""What a pruning method is: its options, its calibration, and which of N vision tokens stay.

A method sees tensors, neither ONNX nor model families. Gathering rows, positions, masks and indices is done once
for all methods in export/gates.py.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from secateur.artifacts import Dimensions, Gate, Schedule
from secateur.calibration.statistics import Statistics


@dataclass(frozen=True)
class BudgetRequest:
    """How much to keep, as the user asked. Unset fields are the method's to decide.

    keep         kept tokens of each gate: shares of the original tokens (below 1, or 1.0 for all) or counts
    compression  average share of vision tokens that a decoder layer does not process
    layers       decoder layers whose entry gets a gate
    """

    keep: tuple[float, ...] | None = None
    compression: float | None = None
    layers: tuple[int, ...] | None = None


@dataclass(frozen=True)
class GateSite:
    """A gate and what is known of its place when it is built; all counts are constants of the graph.

    `vision_tokens` are those alive when the gate starts; `grid` is that of the whole image, raster order.
    """

    gate: Gate
    vision_tokens: int
    image_start: int
    grid: tuple[int, int]
    dimensions: Dimensions


class GateInputs(NamedTuple):
    """What a selector may read. B batch, S rows, N vision tokens alive, D width, H / Hkv heads, dh head width.

    vision          [B, N, D]        residual stream entering the layer, vision rows only
    vision_index    [B, N]           original raster index of each vision row, int64, ascending
    attention_mask  [B, S]           1 = valid row, int64
    query           [B, H, dh]       post-RoPE query of the layer before: last prompt row, or mean over the question
    key             [S, B, Hkv, dh]  post-RoPE keys of the layer before, all rows
    """

    vision: Tensor
    vision_index: Tensor
    attention_mask: Tensor
    query: Tensor | None
    key: Tensor | None


class Selector(nn.Module):
    """Chooses tokens. Static shapes only: no data-dependent control flow, sizes, or index compaction.

    `query` says which query the selector reads: "" none, "last" the last prompt row, "text" the mean over the
    question's rows; `key` says whether it reads the keys. Scores, distances and top-k are fp32 whatever the input.
    """

    query: str = ""
    key: bool = False

    def forward(self, rows: GateInputs) -> Tensor:
        """Kept slots [B, k], int64, ascending, without repeats: positions among the N vision rows."""
        raise NotImplementedError


def given(tensor: Tensor | None) -> Tensor:
    """A gate input that the selector has asked for."""
    if tensor is None:
        raise ValueError("the gate lacks an input that its selector asks for; see Selector.query and Selector.key")
    return tensor


class Fixed(Selector):
    """The same slots for every image: all of them, none, or a constant choice."""

    slots: Tensor

    def __init__(self, slots: Iterable[int]) -> None:
        super().__init__()
        self.register_buffer("slots", torch.tensor(sorted(slots), dtype=torch.int64))

    def forward(self, rows: GateInputs) -> Tensor:
        return self.slots.expand(rows.vision_index.shape[0], -1)


@dataclass(frozen=True)
class Method(ABC):
    """Base of all methods; the fields of a subclass are its options and become command-line flags."""

    statistics: ClassVar[frozenset[str]] = frozenset()
    """What calibration must measure: "similarity", "attention". Empty: the model is not run."""

    @abstractmethod
    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """The schedule of this method on the measured model.

        Raises:
            BadSchedule: the request cannot be met; the message names the bound.
        """

    @classmethod
    @abstractmethod
    def selector(cls, site: GateSite) -> Selector:
        """The module that chooses at one gate, from `site.gate.selector` alone."""


def top(score: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the largest scores along the last axis, best first; ties go to the lower index.

    ONNX TopK breaks ties so; eager torch.topk promises nothing, hence the stable sort outside of an export.
    """
    if torch.compiler.is_exporting():
        return torch.topk(score, count, dim=-1).indices
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :count]


def ascending(slots: Tensor) -> Tensor:
    """Sort slots [B, k] upwards; the values of a smallest-first TopK over the k kept slots."""
    return torch.topk(slots, slots.shape[-1], dim=-1, largest=False).values
