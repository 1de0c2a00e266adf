# SPDX-License-Identifier: Apache-2.0
"""Write a graph to an ONNX file; the only call of torch.onnx.export.

A graph is traced with parameters that have a shape and no values, so nothing that depends on them is folded; then the
graph refers to the weights in their files (weights.py). Models in memory and in checkpoints are handled the same way.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir
import torch
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.export import Dim

from secateur.bundle.manifest import TensorSpec, WeightSpec
from secateur.checkpoints.streaming import held
from secateur.errors import BadModel
from secateur.export.graph_forms import simplify
from secateur.export.graphs import Graph
from secateur.export.weight_inputs import weights_as_inputs
from secateur.export.weights import Weights, WeightStore, externalize, name_weights, read_transposed

FORBIDDEN = frozenset({"NonZero", "Compress", "Unique", "Loop", "If"})
EXTERNAL_BYTES = 1 << 16
Change = Callable[[onnx_ir.Model], object]


def to_onnx(
    graph: Graph, path: Path, opset: int, store: WeightStore | None = None, change: Change | None = None
) -> tuple[WeightSpec, ...]:
    """Write one graph, and its weights to `store` if they are large; without a store to a file of the graph.

    Returns the weights that are inputs of the graph; their files are named without a folder.

    Constants that are not in the store are written to `<path>.data`, or stay in the graph if they are small. The bytes
    depend on the graph only.

    change  called with the graph before the weights are written; it may replace them

    Raises:
        BadModel: the graph cannot be traced, or needs an operator with a data-dependent shape.
    """
    spec = graph.spec
    module = graph.module.eval()
    if not _has_inputs(module, store) and sum(weight.nbytes for weight in module.parameters()) <= EXTERNAL_BYTES:
        with held(module):
            program = _trace(graph, opset)
        weights: Weights = {}
    else:
        store = store or WeightStore(path.parent, {path.stem: module})
        with _without_values(module):
            program = _trace(graph, opset, optimize=False)
        weights = name_weights(program.model, dict(module.named_parameters(remove_duplicate=False)))
        with _quiet():
            program.optimize()
        read_transposed(program.model, weights, store)
    model = program.model
    _tidy(model, spec.inputs, spec.outputs)
    simplify(model)
    model.metadata_props.update(graph.notes)
    found = {node.op_type for node in model.graph.all_nodes()} & FORBIDDEN
    if found:
        raise BadModel(f"graph '{spec.name}' needs {', '.join(sorted(found))}, whose shape depends on data")
    if change is not None:
        change(model)
    inputs = weights_as_inputs(model, weights, store) if store is not None and store.inputs else ()
    path.parent.mkdir(parents=True, exist_ok=True)
    externalize(model, weights, store, path, EXTERNAL_BYTES)
    onnx_ir.save(model, path)
    return inputs


def _has_inputs(module: nn.Module, store: WeightStore | None) -> bool:
    """Return whether weights of the module become inputs of its graph: even small ones, but not the norms of a gate."""
    return store is not None and store.inputs and any(w.dim() > 1 and store.has(w) for w in module.parameters())


def _trace(graph: Graph, opset: int, optimize: bool = True) -> torch.onnx.ONNXProgram:
    spec = graph.spec
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.module,
                graph.example(),
                input_names=[x.name for x in spec.inputs],
                output_names=[x.name for x in spec.outputs],
                dynamic_shapes=_dynamic_shapes(graph),
                opset_version=opset,
                dynamo=True,
                optimize=optimize,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as problem:
            reason = problem.__cause__ or problem
            raise BadModel(f"graph '{spec.name}' cannot be traced: {str(reason).splitlines()[0]}") from problem
    assert program is not None
    return program


@contextmanager
def _without_values(module: nn.Module) -> Iterator[None]:
    """Replace the parameters of `module` within the block by fake ones with shape, dtype and ties, but no values."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    owners = [owner._parameters for owner in module.modules()]
    before = [dict(parameters) for parameters in owners]
    fakes = dict[nn.Parameter, nn.Parameter]()
    try:
        for parameters in owners:
            for name, weight in parameters.items():
                if weight is None:
                    continue
                if weight not in fakes:
                    with mode:
                        fakes[weight] = nn.Parameter(torch.empty(weight.shape, dtype=weight.dtype), requires_grad=False)
                parameters[name] = fakes[weight]
        yield
    finally:
        for parameters, kept in zip(owners, before, strict=True):
            parameters.update(kept)


def _dynamic_shapes(graph: Graph) -> tuple[object, ...]:
    """Return the dynamic shapes as torch.export nests them: one entry per input, the inputs in *args as one tuple."""
    dims = [{i: Dim.DYNAMIC for i, d in enumerate(x.shape) if isinstance(d, str)} for x in graph.spec.inputs]
    code = graph.module.forward.__func__.__code__  # type: ignore[attr-defined]
    named = code.co_argcount - 1
    return (*dims[:named], tuple(dims[named:])) if len(dims) > named else tuple(dims)


def _tidy(model: onnx_ir.Model, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Name the dimensions as the manifest does, and drop the tracer's metadata, which contains local paths."""
    for values, specs in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value, spec in zip(values, specs, strict=True):
            assert value.name == spec.name, f"{value.name} is not {spec.name}"
            value.shape = onnx_ir.Shape(spec.shape)
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for output in node.outputs:
            output.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    model.producer_name, model.producer_version = "secateur", None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's progress and deprecation messages."""
    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir")
    ]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
