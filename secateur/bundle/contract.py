# SPDX-License-Identifier: Apache-2.0
"""Check that the graphs of a manifest form the chain that the runtime expects.

graph      inputs -> outputs (an output may be called `x.out` where an input is called `x`)
vision     pixel_values -> features, and deepstack.i where the model adds planes
projector  features -> vision_tokens
embed      input_ids -> hidden_states
rotary     position_ids -> rotary_cos, rotary_sin
segment    hidden_states, attention_mask, past_key.l, past_value.l, rotary_cos, rotary_sin, position_ids, last_index,
           question_position, deepstack.l of its layers
           -> hidden_states (the last one: logits), new_key.l, new_value.l, and the inputs of gates
gate       prune: hidden_states, position_ids, attention_mask, vision_index, outputs of the preceding segment
                  -> hidden_states, position_ids, attention_mask, vision_index
           route: the same and full_states, full_position_ids, full_attention_mask, full_deepstack.i of the layers from
                  the previous gate on
                  -> the same as prune and, from the second one on, full_states
           vision: features, vision_index, and other outputs of vision -> features, vision_index
           downsample: pixel_values -> features, vision_index
           all but downsample also pass on deepstack.i
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from secateur.bundle.manifest import GateRef, GraphSpec, Manifest, TensorSpec
from secateur.bundle.schedule import ENCODER_GATES, KINDS
from secateur.bundle.size_limits import MOST_ELEMENTS, MOST_RANK, MOST_ROWS
from secateur.bundle.symbolic_shape import terms
from secateur.errors import BadBundle

GRAPHS = ("vision", "projector", "embed", "rotary", "segment", "gate")
FRONT = {
    "vision": ({"pixel_values"}, {"features"}),
    "projector": ({"features"}, {"vision_tokens"}),
    "embed": ({"input_ids"}, {"hidden_states"}),
}
ROTARY = {"rotary_cos", "rotary_sin"}
CACHED, POSITIONS = ("past_", "new_"), ("position_ids", "full_position_ids", "question_position")
"""Prefixes of tensors whose first two dimensions are dynamic, and of those whose first one may be fixed (axes)."""
DTYPES = ("float32", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
ROWS = {"hidden_states", "position_ids", "attention_mask"}


def check_graphs(manifest: Manifest) -> None:
    """Check that kinds, names, layers and tensors of all graphs fit together, for every image size.

    Raises:
        BadBundle: they do not fit; names the graph and the mismatch.
    """
    for graph in manifest.graphs:
        if graph.kind not in GRAPHS:
            raise BadBundle(f"graph '{graph.name}' has the unknown kind '{graph.kind}'")
        _check_tensors(graph)
    _check_segments(manifest)
    _check_flow(manifest)
    for bucket in manifest.buckets:
        _check_bucket(bucket)


def _check_bucket(manifest: Manifest) -> None:
    planes = _planes(manifest, 0)
    for kind, (inputs, outputs) in FRONT.items():
        found = [g for g in manifest.graphs if g.kind == kind]
        name = manifest.layout.vision if kind == "vision" else kind
        if [g.name for g in found] != [name]:
            raise BadBundle(f"it needs exactly one {kind} graph, called '{name}'")
        _check_names(found[0], inputs, inputs, outputs | (planes if kind == "vision" else set()))
    if manifest.schedules.get("full") is None or manifest.schedules["full"].gates:
        raise BadBundle("it lacks the schedule 'full', the one without gates")
    for name, schedule in manifest.schedules.items():
        alive, last = manifest.layout.vision_tokens, 0
        for number, gate in enumerate(schedule.gates):
            _check_gate(manifest, name, gate, alive, last if number else gate.layer)
            alive, last = gate.keep, gate.layer


def _check_tensors(graph: GraphSpec) -> None:
    for t in (*graph.inputs, *graph.outputs):
        if not t.shape:
            raise BadBundle(f"graph '{graph.name}' has a tensor without dimensions")
        if t.dtype not in DTYPES:
            raise BadBundle(
                f"graph '{graph.name}', tensor '{t.name}' has the dtype '{t.dtype[:20]}', not one of {DTYPES}"
            )
        if len(t.shape) > MOST_RANK:
            raise BadBundle(
                f"graph '{graph.name}', tensor '{t.name}' has {len(t.shape)} dimensions, more than {MOST_RANK}"
            )
        elements = math.prod(size for size in t.shape if isinstance(size, int))
        if elements > MOST_ELEMENTS:
            raise BadBundle(
                f"graph '{graph.name}', tensor '{t.name}' has {elements} elements, more than {MOST_ELEMENTS}"
            )
    names = [t.name for t in (*graph.all_inputs, *graph.outputs)]
    if len(set(names)) != len(names):
        raise BadBundle(f"graph '{graph.name}' has two tensors of the same name")
    for tensor in (*graph.inputs, *graph.outputs):
        varied = 2 if tensor.name.startswith(CACHED) else 0 if tensor.name.startswith(POSITIONS) else 1
        if any(isinstance(dimension, int) for dimension in tensor.shape[:varied]):
            raise BadBundle(
                f"graph '{graph.name}', tensor '{tensor.name}' must have a dynamic size, has {list(tensor.shape)}"
            )
        for dimension in tensor.shape:
            try:
                if isinstance(dimension, str):
                    largest = max((term for _, term in terms(dimension) if isinstance(term, int)), default=0)
                    if largest > MOST_ROWS:
                        raise ValueError(f"dimension '{dimension}' has a number above {MOST_ROWS}")
                elif dimension < 0:
                    raise ValueError(f"dimension {dimension} is below 0")
            except ValueError as problem:
                raise BadBundle(f"graph '{graph.name}', tensor '{tensor.name}': {problem}") from None


def _check_flow(manifest: Manifest) -> None:
    """Check that a tensor has the same dtype, rank and fixed sizes in every graph; rows and tokens may differ."""
    sizes = manifest.dimensions
    row = [sizes.kv_heads, sizes.head_dim]
    known: dict[str, tuple[str, list[int], str]] = {}
    widths = {"hidden_states": sizes.width, "vision_tokens": sizes.width, "logits": sizes.vocabulary}
    for graph in manifest.graphs:
        for tensor in (*graph.inputs, *graph.outputs):
            name, where = tensor.flows_to, f"graph '{graph.name}', tensor '{tensor.name}'"
            fixed = [size for size in tensor.shape[1 if name == "logits" else 2 :] if isinstance(size, int)]
            wanted = row if name.startswith(CACHED) else [widths[name]] if name in widths else fixed
            if fixed != wanted:
                raise BadBundle(f"{where} ends with {fixed}, the model's dimensions say {wanted}")
            kind = (f"{tensor.dtype} of {len(tensor.shape)} dimensions", fixed)
            *other, first = known.setdefault(name, (*kind, graph.name))
            if name != "pixel_values" and (*other,) != kind:  # the images of each size have their own shape
                raise BadBundle(
                    f"{where} is {kind[0]} ending with {fixed}; in graph '{first}' it is {other[0]}, {other[1]}"
                )


def _check_segments(manifest: Manifest) -> None:
    start, layers = 0, manifest.dimensions.layers
    for segment in manifest.segments:
        if segment.layers is None or segment.layers[0] != start or not start < segment.layers[1] <= layers:
            raise BadBundle(f"graph '{segment.name}' has the layers {segment.layers}, not from {start} on, to {layers}")
        first, start = segment.layers
        past = {f"past_{part}.{layer}" for part in ("key", "value") for layer in range(first, start)}
        new = {name.replace("past", "new") for name in past}
        planes = {f"deepstack.{layer}" for layer in range(first, min(start, manifest.dimensions.planes))}
        known = ROWS | ROTARY | {"last_index", "question_position"} | past | planes
        result = "logits" if start == layers else "hidden_states"
        _check_names(segment, {"hidden_states", "attention_mask"} | past | planes, known, {result} | new)
    turned = [graph for graph in manifest.graphs if graph.kind == "rotary"]
    if any(spec.name in ROTARY for segment in manifest.segments for spec in segment.inputs):
        if [graph.name for graph in turned] != ["rotary"]:
            raise BadBundle("it needs exactly one rotary graph, called 'rotary'")
        _check_names(turned[0], {"position_ids"}, {"position_ids"}, ROTARY)
    if start != layers:
        raise BadBundle(f"its segments end at layer {start}, the model has {layers}")


def _check_gate(manifest: Manifest, schedule: str, gate: GateRef, alive: int, last: int) -> None:
    """Check one gate; `last` is the layer of the gate before it, or its own if it is the first."""
    graph = manifest.graph(gate.graph)
    where = f"gate '{graph.name}' of schedule '{schedule}'"
    if graph.kind != "gate":
        raise BadBundle(f"{where} is a {graph.kind} graph")
    if gate.kind not in KINDS:
        raise BadBundle(f"{where} has the unknown kind '{gate.kind}'")
    layers = [s.layers for s in manifest.segments if s.layers]
    if gate.layer not in [first for first, _ in layers]:
        raise BadBundle(f"{where} is at layer {gate.layer}, where no segment starts")
    if graph.layers != (gate.layer, gate.layer):
        raise BadBundle(f"{where} was made for layer {graph.layers and graph.layers[0]}, not {gate.layer}")
    if gate.kind in ENCODER_GATES:
        if gate.layer != 0:
            raise BadBundle(f"{where} is at layer {gate.layer}, but a gate in the encoder must be at layer 0")
        first, result = ("features", "vision_index") if gate.kind == "vision" else ("pixel_values", "pixel_values")
        seen = {t.name for t in manifest.vision.outputs} | {"vision_index"}
        given = {"features", "vision_index"} | _planes(manifest, 0)
        _check_names(graph, {first, result}, seen if gate.kind == "vision" else {first}, given)
    else:
        before = next((s for s in manifest.segments if s.layers and s.layers[1] == gate.layer), None)
        offered = {t.flows_to for t in before.outputs} if before else set()
        planes = _planes(manifest, gate.layer)
        every = {f"full_{name}" for name in _planes(manifest, last)} if gate.kind == "route" else set()
        full = {"full_states", "full_position_ids", "full_attention_mask"} if gate.kind == "route" else set()
        full, needed = full | every, ROWS | {"vision_index"} | planes
        reads = {"hidden_states"} | (every if gate.kind == "route" else {"vision_index"})
        _check_names(graph, reads, needed | {"last_index"} | offered | full, needed)
    if len(gate.of_views) != len(manifest.layout.views):
        raise BadBundle(f"{where} is for {len(gate.of_views)} views, the prompt has {len(manifest.layout.views)}")
    counts, keep = (_vision_tokens(graph.inputs), _vision_tokens(graph.outputs)), gate.keep
    if gate.kind in ENCODER_GATES:  # their graphs process one image
        own = gate.of_views[: len(manifest.layout.image_views)]
        if gate.of_views != own * manifest.layout.images:
            raise BadBundle(f"{where} keeps {gate.of_views} tokens of the views, but one graph serves all images")
        keep = sum(own)
    if gate.kind == "prune" and counts[0] != alive or counts[1] != keep:
        raise BadBundle(f"{where} keeps {counts[1]} of {counts[0]} tokens, not {keep} of {alive}")


def _planes(manifest: Manifest, layer: int) -> set[str]:
    """Return the names of DeepStack planes that decoder layers from `layer` on add to vision rows."""
    return {f"deepstack.{i}" for i in range(layer, manifest.dimensions.planes)}


def _vision_tokens(tensors: Iterable[TensorSpec]) -> int | str:
    """Return N of vision_index [B,N]; 0 if there is no such tensor."""
    return next((t.shape[-1] for t in tensors if t.flows_to == "vision_index"), 0)


def _check_names(graph: GraphSpec, needed: set[str], known: set[str], given: set[str]) -> None:
    inputs, outputs = {t.name for t in graph.inputs}, {t.flows_to for t in graph.outputs}
    for names, text in (
        (needed - inputs, "lacks the input"),
        (inputs - known, "has the unknown input"),
        (given - outputs, "lacks the output"),
    ):
        if names:
            raise BadBundle(f"graph '{graph.name}' {text} '{min(names)}'")
