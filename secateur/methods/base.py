# SPDX-License-Identifier: Apache-2.0
"""What a pruning method is: its options, its calibration, and which of N vision tokens stay.

A method sees tensors, neither ONNX nor model families. Gathering rows, positions, masks and indices is done once
for all methods in export/gates.py.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from secateur.artifacts import Array, Dimensions, Gate, Json, Schedule
from secateur.calibration.statistics import Statistics
from secateur.errors import BadSchedule
from secateur.methods import _rounds


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


class Projections(Protocol):
    """What a decoder layer does to its input before its attention. B batch, S rows, D width, H / Hkv heads of dh.

    query, key  weights [H * dh, D] and [Hkv * dh, D], and their biases or None
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None

    def normalise(self, rows: Tensor) -> Tensor:
        """The layer's own norm before attention: [B, S, D] -> [B, S, D]."""

    def heads(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Projected rows [B, S, H * dh] and [B, S, Hkv * dh] as heads after RoPE: [B, H, S, dh], [B, Hkv, S, dh]."""


@dataclass(frozen=True)
class GateSite:
    """A gate and what is known of its place when it is built; all counts are constants of the graph.

    vision_tokens  those alive when the gate starts
    grid           rows and columns of the whole image, raster order
    tensors        those of `Schedule.tensors`
    projections    of the layer behind the gate; None for a gate in the vision encoder
    """

    gate: Gate
    vision_tokens: int
    image_start: int
    grid: tuple[int, int]
    dimensions: Dimensions
    tensors: Mapping[str, Array] = field(default_factory=dict)
    projections: Projections | None = None


class GateInputs(NamedTuple):
    """What a selector may read. B batch, S rows, N vision tokens alive, D width.

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

    Scores, distances and top-k are fp32 whatever the input. `reads` names what the selector wants beside the rows.

    In the decoder, of the layer before the gate (so a gate at layer 0 has none of them):
        query             [B, H, dh]       post-RoPE query of the last prompt row
        text_query        [B, H, dh]       mean of the queries of the question's rows
        queries           [S, B, H, dh]    post-RoPE queries of all rows
        key               [S, B, Hkv, dh]  post-RoPE keys of all rows
        layer_input       [B, S, D]        rows that entered that layer

    In the vision encoder, of its layer l (counted from the end: "received.-2" is the last but one):
        received.l        [B, N] fp32      attention that a patch gets from the patches, their sum, mean over heads
        given.l           [B, N] fp32      attention that a patch pays to the patches, likewise
        class_token.l     [B, N] fp32      attention that a patch gets from the class token, mean over heads
        patch_key.l       [B, N, dk]       keys of the patches, mean over heads
    """

    reads: tuple[str, ...] = ()

    def forward(self, rows: GateInputs) -> Tensor:
        """Kept slots [B, k], int64, ascending, without repeats: positions among the N vision rows."""
        raise NotImplementedError

    def kept(self, rows: GateInputs) -> tuple[Tensor, Tensor]:
        """The slots, and the rows [B, k, D] that go on; who merges dropped tokens into kept ones overrides this."""
        slots: Tensor = self(rows)
        return slots, gather(rows.vision, slots)


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
    """What calibration must measure: fields of `Statistics`. Empty: the model is not run."""

    samples: ClassVar[int] = 64
    """Calibration samples, unless the user says otherwise."""

    positions: Literal["original", "compact"] = field(
        default="original",
        kw_only=True,
        metadata={"help": "kept tokens keep their positions, or everything behind a gate is renumbered"},
    )

    @property
    def name(self) -> str:
        """The method's name: its file's name."""
        return type(self).__module__.rpartition(".")[2]

    @abstractmethod
    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """The schedule of this method on the measured model.

        Raises:
            BadSchedule: the request cannot be met; the message names the bound.
        """

    @classmethod
    def choose(cls, site: GateSite) -> Selector:
        """The module at one gate: a constant where it keeps all tokens or none, else the method's `selector`.

        Raises:
            BadSchedule: the gate cannot keep so many, or its constants do not fit the method.
        """
        keep, tokens = site.gate.keep, site.vision_tokens
        if not 0 <= keep <= tokens:
            raise BadSchedule(
                f"keep {keep} of the gate at layer {site.gate.layer} must be within 0 and {tokens}, "
                "the tokens alive there"
            )
        return Fixed(range(keep)) if keep in (0, tokens) else cls.selector(site)

    @classmethod
    @abstractmethod
    def selector(cls, site: GateSite) -> Selector:
        """The module that chooses, for a gate that keeps some tokens but not all, from `site` alone.

        Raises:
            BadSchedule: a constant in `site.gate.selector` is missing, unknown or out of its bounds.
        """

    def refuse(self, names: Sequence[str], when: str) -> None:
        """Of the options `names`, none was changed, since `when` something holds they change nothing.

        Raises:
            BadSchedule: one was; a setting without an effect must not pass in silence.
        """
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.name in names and value != option.default:
                raise BadSchedule(f"{option.name} {value} changes nothing {when}; leave it out")

    def schedule(
        self,
        statistics: Statistics,
        gates: Sequence[Gate],
        calibration: Json | None = None,
        tensors: Mapping[str, Array] | None = None,
    ) -> Schedule:
        """The schedule of these gates, with its name and its cost."""
        from secateur.calibration.budget import budget, schedule_name

        model, gates = statistics.model, tuple(gates)
        cost = budget(statistics.dimensions, model.vision_tokens, gates)
        return Schedule(
            name=schedule_name(self.name, cost),
            method=self.name,
            model=model,
            gates=gates,
            budget=cost,
            positions=self.positions,
            calibration=calibration or {},
            tensors=tensors or {},
        )


def top(score: Tensor, count: int) -> Tensor:
    """Indices [..., count] of the largest scores along the last axis, best first; ties go to the lower index."""
    return _rounds.top(score, count)


def ascending(slots: Tensor) -> Tensor:
    """Slots [B, k] upwards: no two of a row are alike, so a TopK over the k kept slots sorts them."""
    return _rounds.ascending(slots)


def best(score: Tensor, count: int) -> Tensor:
    """Slots [B, count] of the largest scores [B, N], ascending."""
    return ascending(top(score, count))


def gather(rows: Tensor, slots: Tensor) -> Tensor:
    """rows [B, N, ...] at slots [B, k] -> [B, k, ...], as one plain Gather of whole rows."""
    if slots.shape[1] == 0:
        return rows[:, :0]
    batch, count = rows.shape[:2]
    offset = torch.arange(batch, device=rows.device)[:, None] * count
    flat = rows.reshape(batch * count, *rows.shape[2:]).index_select(0, (slots + offset).reshape(-1))
    return flat.reshape(batch, slots.shape[1], *rows.shape[2:])
