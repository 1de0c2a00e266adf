# SPDX-License-Identifier: Apache-2.0
"""Schedules: which layers prune, how many tokens they keep, and how these are chosen (schedule.json).

Schedules and gates are checked when they are constructed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from numpy.typing import NDArray

from secateur.bundle.layout import ModelIdentity
from secateur.bundle.names import LONGEST_SCHEDULE, is_plain
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule

T = TypeVar("T")
Array = NDArray[Any]
ENCODER_GATES = ("vision", "downsample")
KINDS = ("prune", "route", *ENCODER_GATES)
SCHEDULE_SCHEMA = 2
FULL = "full"
"""Name and method of the schedule without gates, which is in every bundle."""


@dataclass(frozen=True)
class ViewGate:
    """Pruning of one of several views by a gate; `tensors` is the prefix of its tensor names."""

    keep: int
    selector: Json = field(default_factory=dict)
    tensors: str = ""


@dataclass(frozen=True)
class Gate:
    """Reduce the vision tokens *entering* decoder layer `layer` (0-based) to `keep`.

    `selector` has all parameters of the method for this gate. If the prompt has several views, each is pruned
    independently: `parts` has one entry per view, and `keep` is the sum. Kinds:

    prune       between two segments; dropped tokens are absent from `layer` on
    route       chooses among all tokens; the other tokens skip the layers up to the next gate
    vision      between the vision encoder and the projector (layer 0)
    downsample  replaces the encoder by one for a smaller image (layer 0)
    """

    layer: int
    keep: int
    kind: str = "prune"
    selector: Json = field(default_factory=dict)
    parts: tuple[ViewGate, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadSchedule(f"gate kind '{self.kind}' is not known; use one of {', '.join(KINDS)}")
        if self.kind in ENCODER_GATES and self.layer != 0:
            raise BadSchedule(f"a gate of kind '{self.kind}' must be at layer 0, not {self.layer}")
        if self.layer < 0:
            raise BadSchedule(f"gate layer {self.layer} is below 0; layers count from 0")
        if self.keep < 0:
            raise BadSchedule(f"gate at layer {self.layer} keeps {self.keep} tokens; keep must be at least 0")
        if self.parts and (self.selector or self.keep != sum(part.keep for part in self.parts)):
            raise BadSchedule(
                f"gate at layer {self.layer} with parts must keep their sum, not {self.keep}, and have no selector"
            )
        for part in self.of_views:
            grid: Any = part.selector.get("grid")
            if self.kind == "downsample" and (not _is_grid(grid) or grid[0] * grid[1] != part.keep):
                raise BadSchedule(
                    f"a downsample gate needs a grid [rows, columns] of its {part.keep} tokens, not {grid}"
                )

    @property
    def of_views(self) -> tuple[ViewGate, ...]:
        """One part per view."""
        return self.parts or (ViewGate(self.keep, self.selector),)


def _is_grid(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and all(type(v) is int and v > 0 for v in value)


@dataclass(frozen=True)
class Budget:
    """Cost of a schedule in the usual units.

    average_tokens       kept vision tokens, averaged over the decoder layers
    compression          1 - average_tokens / vision tokens
    prefill_tflops       vision tokens only: sum over layers of 4nd^2 + 2n^2d + 3ndm (BTP, section 5)
    prefill_flops_ratio  prefill_tflops over its unpruned value
    kv_bytes             bytes of cached vision keys and values per layer, at two bytes per element and batch 1
    """

    average_tokens: float
    compression: float
    prefill_tflops: float
    prefill_flops_ratio: float
    kv_bytes: tuple[int, ...]


@dataclass(frozen=True)
class Schedule:
    """Gates of one pruning method on one model (schedule.json).

    positions  "original": kept tokens keep their position, and generated ones continue from the unpruned length;
               "compact": positions in a layer count only its rows
    weights    sha256 of the .safetensors file beside the schedule, which contains `tensors`; "" if there is none
    """

    name: str
    method: str
    model: ModelIdentity
    gates: tuple[Gate, ...]
    budget: Budget
    positions: str = "original"
    calibration: Json = field(default_factory=dict)
    weights: str = ""
    schema: int = SCHEDULE_SCHEMA
    tensors: Mapping[str, Array] = field(default_factory=dict, compare=False, repr=False, metadata={"json": False})

    def __post_init__(self) -> None:
        if self.schema != SCHEDULE_SCHEMA:
            raise BadSchedule(
                f"schedule schema {self.schema} is not known, this version reads schema {SCHEDULE_SCHEMA}; "
                "calibrate it again"
            )
        if self.positions not in ("original", "compact"):
            raise BadSchedule(f"positions '{self.positions}' is not known; use 'original' or 'compact'")
        if self.positions == "compact" and any(gate.kind == "route" for gate in self.gates):
            raise BadSchedule(
                "positions 'compact' cannot be used with gates of kind 'route', whose rows differ in every layer"
            )
        if not is_plain(self.name, LONGEST_SCHEDULE):
            raise BadSchedule(
                f"schedule name {self.name[:LONGEST_SCHEDULE]!r} must be of letters, digits, '.', '_' and '-', without "
                f"'.' or '-' at the start, and have at most {LONGEST_SCHEDULE} bytes"
            )
        check_gates(self.gates, self.model.layers, self.model.vision_tokens)


def check_gates(gates: tuple[Gate, ...], layers: int, vision_tokens: int) -> None:
    """Check that layers increase within the model, kept counts never grow, and kinds are compatible.

    Raises:
        BadSchedule: they do not; names the gate, the value and the bound.
    """
    if len({gate.kind == "route" for gate in gates}) > 1:
        raise BadSchedule("gates of kind 'route' cannot be combined with other kinds in one schedule")
    layer, alive = -1, vision_tokens
    for gate in gates:
        if gate.layer <= layer:
            raise BadSchedule(f"gate layers must increase: layer {gate.layer} follows layer {layer}")
        if gate.layer >= layers:
            raise BadSchedule(f"gate layer {gate.layer} is outside the model; its layers are 0 to {layers - 1}")
        if gate.keep > alive:
            raise BadSchedule(
                f"gate at layer {gate.layer} keeps {gate.keep} tokens of {alive}; kept counts must not grow"
            )
        layer, alive = gate.layer, vision_tokens if gate.kind == "route" else gate.keep
