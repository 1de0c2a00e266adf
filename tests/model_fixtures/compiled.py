# SPDX-License-Identifier: Apache-2.0
"""Graphs of a model, exported for TensorRT and compiled by TensorRT for RTX, without a whole bundle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.schedule import Schedule
from secateur.bundle.symbolic_shape import resolve_shapes
from secateur.engines.compiler import Compiled, compile_graph
from secateur.engines.manifest import Profile, Range
from secateur.engines.shapes import dynamic
from secateur.export.first_maximum import replace_single_topk
from secateur.export.graphs import Graph, build_graphs, sized_model
from secateur.export.targets import SHARED, Target
from secateur.export.to_onnx import to_onnx
from secateur.export.weights import WeightStore, model_parts
from secateur.families.base import Family


def first_of_each_kind(graphs: Sequence[Graph]) -> list[Graph]:
    """Return the first segment and the first gate."""
    return [next(graph for graph in graphs if graph.spec.kind == kind) for kind in ("segment", "gate")]


def compiled(
    family: Family,
    made: Iterable[Schedule],
    kind: Target,
    folder: Path,
    chosen: Callable[[Sequence[Graph]], Iterable[Graph]] = first_of_each_kind,
) -> dict[str, Compiled]:
    """Export the chosen graphs of a model with these schedules to `folder`, check them, and return them compiled."""
    family = copy.deepcopy(family)
    family.to(kind.torch_dtype)
    store = WeightStore(folder / "onnx", model_parts(family), inputs=kind.weights == SHARED)
    found = {}
    for graph in chosen(build_graphs([sized_model(family, family.layout, list(made))], kind)):
        path, spec = folder / graph.spec.file, graph.spec
        weights = to_onnx(graph, path, kind.opset, store, replace_single_topk if spec.kind == "gate" else None)
        built = compile_graph(path, profiles_of(graph), weights=[weight.name for weight in weights])
        check(spec, built)
        found[spec.name] = built
    return found


def check(spec: GraphSpec, built: Compiled) -> None:
    """Check that the attention of every layer is fused in each profile, and no weight is copied."""
    assert built.plan and not built.warnings
    first, end = spec.layers or (0, 0)
    for kernels in built.kernels:
        assert sum(kernel.attention for kernel in kernels) >= end - first, spec.name
        assert not [kernel.name for kernel in kernels if kernel.copy], spec.name


def profiles_of(graph: Graph) -> list[Profile]:
    """Return profiles for one sample like those of a build."""
    rows = graph.rows
    if graph.spec.kind == "segment":
        return [
            _profile("prefill", graph, {"S": 1, "P": 0}, {"S": 50, "P": 0}, {"S": 60, "P": 90}),
            _profile("decode", graph, {"S": 1, "P": 1}, {"S": 1, "P": 90}, {"S": 1, "P": 90}),
        ]
    sizes = [{"S": rows + more, "T": 1 + more, "n": 4 + more} for more in (0, 16, 32)]
    return [_profile("all", graph, *sizes)]


def _profile(name: str, graph: Graph, *sizes: dict[str, int]) -> Profile:
    specs = [spec for spec in graph.spec.inputs if spec.name in dynamic(graph.spec)]
    least, usual, most = (resolve_shapes(specs, {"B": 1, **symbols}) for symbols in sizes)
    return Profile(name, {spec.name: Range(least[spec.name], usual[spec.name], most[spec.name]) for spec in specs})
