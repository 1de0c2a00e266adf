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
from secateur.artifacts import GateRef, GraphSpec, Schedule, TensorSpec
from secateur.errors import BadSchedule
from secateur.export.gates import Prune
from secateur.export.segments import Segment
from secateur.export.targets import Target
from secateur.methods.base import GateSite, Selector
from secateur.models.base import Family

QUERY_NAMES = {"last": "query", "text": "text_query"}


@dataclass(frozen=True)
class Graph:
    """A module whose positional inputs and outputs are those of `spec`, in order.

    rows   S of an example
    notes  what the file's metadata says
    """

    spec: GraphSpec
    module: nn.Module
    rows: int = 7
    notes: dict[str, str] = field(default_factory=dict)

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes and dtypes; the values mean nothing."""
        sizes = {"B": 2, "T": 5, "P": 3, "S": self.rows, "P+S": 3 + self.rows}
        return tuple(
            torch.ones([d if isinstance(d, int) else sizes[d] for d in x.shape], dtype=getattr(torch, x.dtype))
            for x in self.spec.inputs
        )


def build(
    family: Family, schedules: Iterable[Schedule], target: Target
) -> tuple[list[Graph], dict[str, list[GateRef]]]:
    """The graphs of a bundle in the order of the chain, and the gates of each schedule.

    Segments are cut at the union of the schedules' gate layers; a segment returns the queries that any gate behind
    it reads. No weight is copied: the modules share those of the family.

    Raises:
        UnknownName: a schedule names a method that does not exist.
        BadSchedule: a gate's constants do not fit its method or place.
    """
    float_type = str(target.torch_dtype).removeprefix("torch.")
    gates: list[Graph] = []
    refs: dict[str, list[GateRef]] = {"full": []}
    queries: dict[int, set[str]] = {}
    for schedule in schedules:
        refs[schedule.name] = []
        alive = family.layout.vision_tokens
        method = plugins.load(methods, schedule.method, "method").Method
        for j, gate in enumerate(schedule.gates):
            site = GateSite(gate, alive, family.layout.image_start, family.layout.grid, family.dimensions)
            selector: Selector = method.selector(site)
            if gate.layer == 0 and (selector.query or selector.key):
                raise BadSchedule(
                    f"schedule '{schedule.name}': method '{schedule.method}' scores by the layer before, "
                    "so its first gate must be at layer 1 or later, not 0"
                )
            graph = _gate(f"{schedule.name}.{j}", selector, site, float_type, schedule)
            gates.append(graph)
            refs[schedule.name].append(GateRef(gate.layer, graph.spec.name, gate.keep))
            if selector.query:
                queries.setdefault(gate.layer, set()).add(QUERY_NAMES[selector.query])
            alive = gate.keep
    cuts = sorted({0, family.dimensions.layers} | {g.layer for schedule in refs.values() for g in schedule})
    segments = [
        _segment(family, i, first, end, tuple(sorted(queries.get(end, ()))), target, float_type)
        for i, (first, end) in enumerate(zip(cuts, cuts[1:], strict=False))
    ]
    return [*_front(family, float_type), *segments, *gates], refs


def _front(family: Family, float_type: str) -> list[Graph]:
    """Vision tower, projector and token embedding."""
    d, tokens = family.dimensions, family.layout.vision_tokens
    pixels = TensorSpec("pixel_values", "float32", ("B", 3, *family.image_size))
    features = TensorSpec("features", float_type, ("B", tokens, d.vision_width))
    vision_tokens = TensorSpec("vision_tokens", float_type, ("B", tokens, d.width))
    input_ids = TensorSpec("input_ids", "int64", ("B", "T"))
    hidden_states = TensorSpec("hidden_states", float_type, ("B", "T", d.width))
    return [
        Graph(GraphSpec("vision", "vision", "onnx/vision.onnx", (pixels,), (features,)), family.vision()),
        Graph(
            GraphSpec("projector", "projector", "onnx/projector.onnx", (features,), (vision_tokens,)),
            family.projector(),
        ),
        Graph(GraphSpec("embed", "embed", "onnx/embed.onnx", (input_ids,), (hidden_states,)), family.decoder.embed),
    ]


def _segment(
    family: Family, number: int, first: int, end: int, queries: tuple[str, ...], target: Target, float_type: str
) -> Graph:
    d = family.dimensions
    cached, new = ("P", "B", d.kv_heads, d.head_dim), ("S", "B", d.kv_heads, d.head_dim)
    rows = TensorSpec("hidden_states", float_type, ("B", "S", d.width))
    inputs = [
        rows,
        TensorSpec("position_ids", "int64", ("B", "S")),
        TensorSpec("attention_mask", "int64", ("B", "P+S")),
        TensorSpec("last_index", "int64", ("B",)),
    ]
    last = TensorSpec("logits", "float32", ("B", d.vocabulary))
    outputs = [last if end == d.layers else TensorSpec("hidden_states.out", float_type, rows.shape)]
    for layer in range(first, end):
        inputs += [TensorSpec(f"past_{part}.{layer}", float_type, cached) for part in ("key", "value")]
        outputs += [TensorSpec(f"new_{part}.{layer}", float_type, new) for part in ("key", "value")]
    outputs += [TensorSpec(name, float_type, ("B", d.heads, d.head_dim)) for name in queries]
    name = f"segment_{number}"
    spec = GraphSpec(name, "segment", f"onnx/{name}.onnx", tuple(inputs), tuple(outputs), (first, end))
    tail = family.layout.image_start + family.layout.vision_tokens
    return Graph(spec, Segment(family.decoder, first, end, queries, tail, target.decomposed))


def _gate(name: str, selector: Selector, site: GateSite, float_type: str, schedule: Schedule) -> Graph:
    d, before, keep, layer = site.dimensions, site.vision_tokens, site.gate.keep, site.gate.layer
    dropped = before - keep
    inputs = _rows("S", before, d.width, float_type)
    if selector.query:
        inputs.append(TensorSpec(QUERY_NAMES[selector.query], float_type, ("B", d.heads, d.head_dim)))
    if selector.key:
        inputs.append(TensorSpec(f"new_key.{layer - 1}", float_type, ("S", "B", d.kv_heads, d.head_dim)))
    outputs = _rows(f"S-{dropped}" if dropped else "S", keep, d.width, float_type, ".out")
    spec = GraphSpec(name, "gate", f"onnx/gates/{name}.onnx", tuple(inputs), tuple(outputs), (layer, layer))
    constants = {"method": schedule.method, "layer": layer, "before": before, "keep": keep, **site.gate.selector}
    calibration = hashlib.sha256(json.dumps(schedule.calibration, sort_keys=True).encode()).hexdigest()
    notes = {"secateur.gate": json.dumps(constants), "secateur.calibration": f"sha256:{calibration}"}
    return Graph(spec, Prune(selector, site), rows=site.image_start + before + 5, notes=notes)


def _rows(count: str, vision: int, width: int, float_type: str, suffix: str = "") -> list[TensorSpec]:
    return [
        TensorSpec(f"hidden_states{suffix}", float_type, ("B", count, width)),
        TensorSpec(f"position_ids{suffix}", "int64", ("B", count)),
        TensorSpec(f"attention_mask{suffix}", "int64", ("B", count)),
        TensorSpec(f"vision_index{suffix}", "int64", ("B", vision)),
    ]
