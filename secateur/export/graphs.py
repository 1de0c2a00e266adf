# SPDX-License-Identifier: Apache-2.0
"""All graphs of a bundle, as modules with their interface: what export writes and the torch backend runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur import methods, plugins
from secateur.artifacts import Gate, GateRef, GraphSpec, Schedule, TensorSpec
from secateur.errors import BadSchedule
from secateur.export.gates import Encoder, Prune
from secateur.export.interface import Interface, index, is_encoder
from secateur.export.routes import Route
from secateur.export.segments import Segment
from secateur.export.targets import Target
from secateur.methods.base import GateSite, Selector
from secateur.models.base import Family
from secateur.runtime.dimensions import resolve


@dataclass(frozen=True)
class Graph:
    """A module whose positional inputs and outputs are those of `spec`, in order.

    rows   S of an example
    notes  what the file's metadata says
    twin   name of a graph in the same folder that has the same weights, if there is one
    """

    spec: GraphSpec
    module: nn.Module
    rows: int = 7
    notes: dict[str, str] = field(default_factory=dict)
    twin: str = ""

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and dtypes; the values mean nothing."""
        symbols = {"B": 2, "T": 5, "P": 3, "S": self.rows, "n": 5}
        return tuple(
            torch.ones([resolve(d, symbols) for d in x.shape], dtype=getattr(torch, x.dtype)) for x in self.spec.inputs
        )


@dataclass(frozen=True)
class Placed:
    """A gate of a schedule, its selector (None: a smaller image needs none) and, for a route, what came before it."""

    schedule: Schedule
    number: int
    site: GateSite
    selector: Selector | None
    routed: int | None

    @property
    def gate(self) -> Gate:
        return self.site.gate

    @property
    def name(self) -> str:
        return f"{self.schedule.name}.{self.number}"

    @property
    def reads(self) -> tuple[str, ...]:
        return self.selector.reads if self.selector is not None else ()


def build(
    family: Family, schedules: Iterable[Schedule], target: Target
) -> tuple[list[Graph], dict[str, list[GateRef]]]:
    """The graphs of a bundle in the order of the chain, and the gates of each schedule.

    Segments are cut at the union of the schedules' gate layers; a segment, and the vision encoder, return what any
    gate behind them reads. No weight is copied: the modules share those of the family.

    Raises:
        UnknownName: a schedule names a method that does not exist.
        BadSchedule: a gate's constants do not fit its method or place.
        BadModel: the vision encoder cannot give what a gate reads.
    """
    refs: dict[str, list[GateRef]] = {"full": []}
    gates: list[Placed] = []
    for schedule in schedules:
        placed = place(family, schedule)
        gates += placed
        refs[schedule.name] = [GateRef(p.gate.layer, p.name, p.gate.keep, p.gate.kind) for p in placed]
    read_by_layer: dict[int, set[str]] = {}
    for p in gates:
        read_by_layer.setdefault(p.gate.layer, set()).update(p.reads)
    encoder = tuple(sorted(name for name in read_by_layer.get(0, ()) if is_encoder(name)))
    vision = family.vision(encoder)
    interface = Interface(
        family.dimensions,
        family.layout.vision_tokens,
        str(target.torch_dtype).removeprefix("torch."),
        family.patch_key_width if any(name.startswith("patch_key") for name in encoder) else 0,
    )
    cuts = sorted({0, family.dimensions.layers} | {p.gate.layer for p in gates})
    segments = []
    for i, (first, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        reads = tuple(sorted(read_by_layer.get(end, set()) - {"key"}))
        segments.append(_segment(family, interface, i, first, end, reads, target))
    return [*_front(family, interface, vision, encoder), *segments, *(_gate(family, interface, p) for p in gates)], refs


def place(family: Family, schedule: Schedule) -> list[Placed]:
    """The gates of a schedule with their selectors, each told where it stands."""
    method = plugins.load(methods, schedule.method, "method").Method
    layout, placed = family.layout, []
    alive, routed = layout.vision_tokens, None
    for number, gate in enumerate(schedule.gates):
        site = GateSite(
            gate,
            alive,
            layout.image_start,
            layout.grid,
            family.dimensions,
            schedule.tensors,
            family.decoder.projections(gate.layer) if gate.kind == "route" else None,
        )
        selector: Selector | None = None if gate.kind == "downsample" else method.choose(site)
        _check_reads(schedule, gate, selector)
        placed.append(Placed(schedule, number, site, selector, routed))
        if gate.kind == "route":
            routed = gate.keep
        else:
            alive = gate.keep
    return placed


def _check_reads(schedule: Schedule, gate: Gate, selector: Selector | None) -> None:
    who = f"schedule '{schedule.name}': method '{schedule.method}'"
    for name in selector.reads if selector is not None else ():
        if is_encoder(name) != (gate.kind == "vision") or gate.kind == "route":
            raise BadSchedule(f"{who} reads '{name}', which a gate of kind '{gate.kind}' does not have")
        if gate.kind == "prune" and gate.layer == 0:
            raise BadSchedule(f"{who} scores by the layer before, so its first gate must be at layer 1 or later, not 0")
        if name == "text_query" and schedule.positions == "compact":
            raise BadSchedule(f"{who} finds the question by its original positions; use --positions original")


def _front(family: Family, interface: Interface, vision: nn.Module, reads: tuple[str, ...]) -> list[Graph]:
    """Vision tower, projector and token embedding."""
    width = family.dimensions.width
    seen = (interface.features(interface.tokens), *(interface.read(name, 0) for name in reads))
    pixels = _pixels(family)
    return [
        Graph(GraphSpec("vision", "vision", "onnx/vision.onnx", (pixels,), seen), vision),
        Graph(
            GraphSpec(
                "projector",
                "projector",
                "onnx/projector.onnx",
                (interface.features("n"),),
                (interface.floats("vision_tokens", "B", "n", width),),
            ),
            family.projector(),
        ),
        Graph(
            GraphSpec(
                "embed",
                "embed",
                "onnx/embed.onnx",
                (TensorSpec("input_ids", "int64", ("B", "T")),),
                (interface.floats("hidden_states", "B", "T", width),),
            ),
            family.decoder.embed,
        ),
    ]


def _pixels(family: Family) -> TensorSpec:
    return TensorSpec("pixel_values", "float32", ("B", 3, *family.image_size))


def _segment(
    family: Family, interface: Interface, number: int, first: int, end: int, reads: tuple[str, ...], target: Target
) -> Graph:
    inputs, outputs = interface.segment(first, end, reads)
    name = f"segment_{number}"
    spec = GraphSpec(name, "segment", f"onnx/{name}.onnx", tuple(inputs), tuple(outputs), (first, end))
    tail = family.layout.image_start + family.layout.vision_tokens
    return Graph(spec, Segment(family.decoder, first, end, reads, tail, target.decomposed))


def _gate(family: Family, interface: Interface, placed: Placed) -> Graph:
    gate, site, schedule = placed.gate, placed.site, placed.schedule
    before, keep = site.vision_tokens, gate.keep
    read = tuple(interface.read(name, gate.layer) for name in placed.reads)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    module: nn.Module
    if placed.selector is None:
        inputs, outputs = (_pixels(family),), (interface.features(keep), index(keep))
        module = family.vision(grid=tuple(gate.selector["grid"]))
    elif gate.kind == "vision":
        inputs = (interface.features(before), index(before), *read)
        outputs = (interface.features(keep, ".out"), index(keep, ".out"))
        module = Encoder(placed.selector)
    elif gate.kind == "route":
        inputs, outputs = interface.route(placed.routed, keep)
        module = Route(placed.selector, site, placed.routed)
    else:
        inputs, outputs = interface.prune(before, keep)
        inputs = (*inputs, *read)
        module = Prune(placed.selector, site, schedule.positions == "compact")
    twin = "" if placed.selector is not None else "vision"
    file = f"onnx/{placed.name}.onnx" if twin else f"onnx/gates/{placed.name}.onnx"
    spec = GraphSpec(placed.name, "gate", file, inputs, outputs, (gate.layer, gate.layer))
    constants = {"method": schedule.method, "kind": gate.kind, "positions": schedule.positions, "layer": gate.layer}
    constants |= {"before": before, "keep": keep, **gate.selector}
    calibration = hashlib.sha256(json.dumps(schedule.calibration, sort_keys=True).encode()).hexdigest()
    notes = {"secateur.gate": json.dumps(constants), "secateur.calibration": f"sha256:{calibration}"}
    return Graph(spec, module, site.image_start + before + 5, notes, twin)
