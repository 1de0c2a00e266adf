# SPDX-License-Identifier: Apache-2.0
"""Selectors: base class of the modules that choose the tokens of a gate, and their inputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Array, Gate
from secateur.selection.statistics import Projections
from secateur.selection.topk import gather


@dataclass(frozen=True)
class GateSite:
    """A gate and its position in the model; all counts are constants of the graph.

    vision_tokens  vision tokens alive before the gate
    grid           rows and columns of the whole image, raster order
    tensors        the schedule's tensors of this gate
    projections    of the layer after the gate, for a gate of kind "route"
    method         its name, for messages; set by `Method.choose`
    """

    gate: Gate
    vision_tokens: int
    image_start: int
    grid: tuple[int, int]
    dimensions: Dimensions
    tensors: Mapping[str, Array] = field(default_factory=dict)
    projections: Projections | None = None
    method: str = ""


class GateInputs(NamedTuple):
    """Inputs of a selector. B batch, S rows, N vision tokens alive, D width.

    hidden_states   [B, S, D]  residual stream entering the layer; in the vision encoder the features [B, N, Dv]
    position_ids    [B, S]     int64
    attention_mask  [B, S]     1 = valid row, int64
    vision_index    [B, N]     original raster index of each vision row, int64, ascending
    image_start     first vision row
    read            the tensors that `Selector.reads` names
    """

    hidden_states: Tensor
    position_ids: Tensor
    attention_mask: Tensor
    vision_index: Tensor
    image_start: int
    read: Mapping[str, Tensor]

    @property
    def vision(self) -> Tensor:
        """The vision rows [B, N, D]."""
        return self.hidden_states[:, self.image_start : self.image_start + self.vision_index.shape[1]]


class Selector(nn.Module):
    """Chooses tokens. Static shapes only: no data-dependent control flow, sizes, or index compaction.

    Scores, distances and top-k are fp32 for inputs of any dtype. `reads` names the selector's further inputs.

    In the decoder, of the layer before the gate (a gate at layer 0 has none of them):
        query             [B, H, dh]       post-RoPE query of the last prompt row
        text_query        [B, H, dh]       mean of the queries of the question's rows
        queries           [S, B, H, dh]    post-RoPE queries of all rows
        key               [S, B, Hkv, dh]  post-RoPE keys of all rows
        layer_input       [B, S, D]        rows that entered that layer

    In the vision encoder, of its layer l (counted from the end: "received.-2" is the second-to-last):
        received.l        [B, N] fp32      attention that a patch gets from the patches, sum over them, mean over heads
        given.l           [B, N] fp32      attention that a patch pays to the patches, sum and mean likewise
        class_token.l     [B, N] fp32      attention that a patch gets from the class token, mean over heads
        patch_key.l       [B, N, dk]       keys of the patches, mean over heads
    """

    reads: tuple[str, ...] = ()

    def forward(self, rows: GateInputs) -> Tensor:
        """Return the kept slots [B, k], int64: positions among the N vision rows, ascending, without repeats."""
        raise NotImplementedError

    def kept(self, rows: GateInputs) -> tuple[Tensor, Tensor]:
        """Return slots and kept rows [B, k, D]; overridden by selectors that merge dropped tokens into kept ones."""
        slots: Tensor = self(rows)
        return slots, gather(rows.vision, slots)


class Fixed(Selector):
    """Keeps the same slots for every image: all, none, or a constant choice."""

    slots: Tensor

    def __init__(self, slots: Iterable[int]) -> None:
        super().__init__()
        self.register_buffer("slots", torch.tensor(sorted(slots), dtype=torch.int64))

    def forward(self, rows: GateInputs) -> Tensor:
        return self.slots.expand(rows.vision_index.shape[0], -1)
