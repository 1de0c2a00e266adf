# SPDX-License-Identifier: Apache-2.0
"""All graphs of a bundle, as modules with their interface. Export writes them, the torch backend runs them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from secateur.bundle.layout import VISION, Layout
from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.bundle.schedule import ENCODER_GATES, Gate, Schedule
from secateur.bundle.symbolic_shape import resolve
from secateur.checkpoints.streaming import to_device
from secateur.errors import BadSchedule
from secateur.export.gate_sites import PlacedGate, place_gates
from secateur.export.gates import EncoderGate, PruneGate, RouteGate
from secateur.export.interface import Interface, index, is_encoder
from secateur.export.interleaved_views import InterleavedGate
from secateur.export.segments import Rotary, Segment
from secateur.export.targets import Target
from secateur.families.base import Family


@dataclass(frozen=True)
class Graph:
    """A module whose positional inputs and outputs are those of `spec`, in order.

    rows   S of an example
    notes  metadata of the file
    """

    spec: GraphSpec
    module: nn.Module
    rows: int = 7
    notes: dict[str, str] = field(default_factory=dict)

    def example(self) -> tuple[Tensor, ...]:
        """Return inputs of the right shapes and dtypes; the values are arbitrary."""
        symbols = {"B": 2, "T": 5, "P": 3, "S": self.rows, "n": 5}
        return tuple(
            torch.ones([resolve(d, symbols) for d in x.shape], dtype=getattr(torch, x.dtype)) for x in self.spec.inputs
        )


@dataclass(frozen=True)
class SizedModel:
    """A model at one image size, and the gates of its schedules by name. `layout.vision` is its vision graph."""

    family: Family
    layout: Layout
    gates: dict[str, tuple[PlacedGate, ...]]

    @property
    def placed(self) -> list[PlacedGate]:
        return [gate for gates in self.gates.values() for gate in gates]


def sized_model(family: Family, layout: Layout, schedules: Iterable[Schedule]) -> SizedModel:
    """Return the model at one image size with the gates of its schedules.

    Graph names of sizes after the first have the size as a suffix, like `layout.vision`.

    Raises:
        UnknownName, BadSchedule: see `place_gates`.
    """
    suffix = "" if layout.vision == VISION else f"@{layout.size}"
    return SizedModel(
        family, layout, {s.name: tuple(place_gates(family, layout, s, suffix)) for s in schedules if s.gates}
    )


def build_graphs(buckets: Sequence[SizedModel], target: Target) -> list[Graph]:
    """Return the graphs of a bundle in the order of execution.

    Segments are cut at the union of the schedules' gate layers, over all image sizes; a segment, and the vision
    encoder, output what any of the next gates reads. No weight is copied: the modules share those of the family.

    Raises:
        BadModel: the vision encoder cannot compute what a gate reads.
    """
    family = buckets[0].family
    read_by_layer: dict[int, set[str]] = {}
    for gate in (gate for bucket in buckets for gate in bucket.placed):
        read_by_layer.setdefault(gate.gate.layer, set()).update(gate.reads)
    cuts = sorted({0, family.dimensions.layers} | {g.gate.layer for bucket in buckets for g in bucket.placed})
    interfaces = [_interface(bucket, target) for bucket in buckets]
    graphs = [_vision(bucket, tensors) for bucket, tensors in zip(buckets, interfaces, strict=True)]
    graphs += _around_the_decoder(family, interfaces[0])
    for i, (first, end) in enumerate(zip(cuts, cuts[1:], strict=False)):
        reads = tuple(sorted(read_by_layer.get(end, set()) - {"key"}))
        graphs.append(_segment(family, interfaces[0], i, first, end, reads, target))
    for bucket, tensors in zip(buckets, interfaces, strict=True):
        graphs += [_gate(bucket, tensors, gate) for gate in bucket.placed]
    return graphs


def move(family: Family, graphs: Iterable[Graph], device: str) -> None:
    """Move the whole model, and what the modules of its graphs have beside it, to `device`."""
    for module in (family.model, *(graph.module for graph in graphs)):
        to_device(module, device)


def _interface(bucket: SizedModel, target: Target) -> Interface:
    family, layout = bucket.family, bucket.layout
    keyed = any(name.startswith("patch_key") for name in _encoder_reads(bucket))
    return Interface(
        family.dimensions,
        layout.vision_tokens,
        layout.image_tokens,
        str(target.torch_dtype).removeprefix("torch."),
        layout.axes,
        family.patch_key_width if keyed else 0,
    )


def _encoder_reads(bucket: SizedModel) -> tuple[str, ...]:
    return tuple(sorted({name for gate in bucket.placed for name in gate.reads if is_encoder(name)}))


def _vision(bucket: SizedModel, interface: Interface) -> Graph:
    reads, name, tokens = _encoder_reads(bucket), bucket.layout.vision, interface.image_tokens
    planes = interface.planes("deepstack", tokens, range(interface.dimensions.planes))
    seen = (interface.features(tokens), *planes, *(interface.read(read, 0) for read in reads))
    spec = GraphSpec(name, "vision", f"onnx/{name}.onnx", (_pixels(bucket.family),), seen)
    return Graph(spec, bucket.family.vision(reads))


def _around_the_decoder(family: Family, interface: Interface) -> list[Graph]:
    width = family.dimensions.width
    seen, given = interface.features("n"), interface.floats("vision_tokens", "B", "n", width)
    ids, rows = TensorSpec("input_ids", "int64", ("B", "T")), interface.floats("hidden_states", "B", "T", width)
    turned = GraphSpec(
        "rotary", "rotary", "onnx/rotary.onnx", (interface.positions("position_ids", "S"),), interface.rotary
    )
    return [
        Graph(GraphSpec("projector", "projector", "onnx/projector.onnx", (seen,), (given,)), family.projector()),
        Graph(GraphSpec("embed", "embed", "onnx/embed.onnx", (ids,), (rows,)), family.embed()),
        Graph(turned, Rotary(family.decoder, getattr(torch, interface.float_type))),
    ]


def _pixels(family: Family) -> TensorSpec:
    return TensorSpec("pixel_values", "float32", ("B", *family.pixels))


def _segment(
    family: Family, interface: Interface, number: int, first: int, end: int, reads: tuple[str, ...], target: Target
) -> Graph:
    inputs, outputs = interface.segment(first, end, reads)
    name = f"segment_{number}"
    spec = GraphSpec(name, "segment", f"onnx/{name}.onnx", tuple(inputs), tuple(outputs), (first, end))
    return Graph(spec, Segment(family.decoder, first, end, reads, target.decomposed, family.dimensions.planes))


def _gate(bucket: SizedModel, interface: Interface, placed: PlacedGate) -> Graph:
    gate, schedule = placed.gate, placed.schedule
    layer, before, keep = gate.layer, placed.before.tokens, placed.keep
    left = max(0, interface.dimensions.planes - layer)
    read = tuple(interface.read(name, layer) for name in placed.reads)
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    module: nn.Module
    if gate.kind == "downsample":
        inputs, outputs = (_pixels(bucket.family),), (interface.features(keep), index(keep))
        module = bucket.family.vision(grid=_grid(gate, bucket.layout))
    elif gate.kind == "vision":
        inputs, outputs = interface.encoder(before, keep)
        module = EncoderGate(placed.selectors, placed.before, interface.dimensions.planes)
    elif gate.kind == "route":
        inputs, outputs = interface.route(layer, (placed.since, placed.routed.tokens) if placed.routed else None, keep)
        skipped = max(0, min(layer, interface.dimensions.planes) - placed.since)
        module = RouteGate(placed.selectors, placed.before, placed.routed, skipped)
    else:
        inputs, outputs = interface.prune(layer, before, keep)
        module = PruneGate(placed.selectors, placed.before, left, schedule.positions == "compact")
    inputs = (*inputs, *read)
    if placed.selectors and any(len(run) > 1 for run in bucket.layout.runs):
        module = _interleaved(module, inputs, outputs, placed, bucket.layout)
    # External data must be below the folder of the graph, and the weights of the encoder are in onnx/.
    file = f"onnx/{placed.name}.onnx" if gate.kind == "downsample" else f"onnx/gates/{placed.name}.onnx"
    spec = GraphSpec(placed.name, "gate", file, inputs, outputs, (layer, layer))
    rows = placed.before.stop + 5
    return Graph(spec, module, rows, _notes(placed))


def _interleaved(
    module: nn.Module, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], placed: PlacedGate, layout: Layout
) -> InterleavedGate:
    """Wrap a gate for views that interleave."""
    found = (placed.routed or placed.before).views
    seen = layout.features if placed.gate.kind in ENCODER_GATES else layout
    return InterleavedGate(
        module,
        [x.name for x in inputs],
        [x.flows_to for x in outputs],
        seen,
        [view.tokens for view in found],
        [part.keep for part in placed.gate.of_views[: len(found)]],
        placed.schedule.positions == "compact",
    )


def _grid(gate: Gate, layout: Layout) -> tuple[int, int]:
    """Return the patch grid of a downsample gate.

    Raises:
        BadSchedule: an image has several views.
    """
    grids = {tuple(part.selector["grid"]) for part in gate.of_views}
    if len(layout.image_views) > 1 or len(grids) > 1:
        raise BadSchedule(f"a smaller image needs one grid, not {len(layout.image_views)} views; use another method")
    rows, columns = grids.pop()
    return rows, columns


def _notes(placed: PlacedGate) -> dict[str, str]:
    gate, schedule = placed.gate, placed.schedule
    constants = {"method": schedule.method, "kind": gate.kind, "positions": schedule.positions, "layer": gate.layer}
    constants |= {"before": placed.before.tokens, "keep": gate.keep, **gate.selector}
    if gate.parts:
        constants["parts"] = [{"keep": part.keep, **part.selector} for part in gate.parts]
    calibration = hashlib.sha256(json.dumps(schedule.calibration, sort_keys=True).encode()).hexdigest()
    return {"secateur.gate": json.dumps(constants), "secateur.calibration": f"sha256:{calibration}"}
