# SPDX-License-Identifier: Apache-2.0
"""The one place that calls torch.onnx.export."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from torch.export import Dim

from secateur.artifacts import TensorSpec
from secateur.errors import BadModel
from secateur.export.graphs import Graph

FORBIDDEN = frozenset({"NonZero", "Compress", "Unique", "Loop", "If"})
EXTERNAL_BYTES = 1 << 16


def to_onnx(graph: Graph, path: Path, opset: int) -> None:
    """Write one graph; weights go to `<path>.data` beside it when there are enough to matter.

    Weights that `graph.twin`, a graph written before in the same folder, has as well are not written again.

    The bytes depend on the graph alone.

    Raises:
        BadModel: the graph cannot be traced, or needs an operator with a data-dependent shape.
    """
    spec = graph.spec
    names = [x.name for x in spec.inputs]
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                graph.module.eval(),
                graph.example(),
                input_names=names,
                output_names=[x.name for x in spec.outputs],
                dynamic_shapes=_dynamic_shapes(graph),
                opset_version=opset,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as problem:
            reason = problem.__cause__ or problem
            raise BadModel(f"graph '{spec.name}' cannot be traced: {str(reason).splitlines()[0]}") from problem
    assert program is not None
    model = program.model
    _tidy(model, spec.inputs, spec.outputs)
    _norms_of_one_dtype(model)
    model.metadata_props.update(graph.notes)
    found = {node.op_type for node in model.graph.all_nodes()} & FORBIDDEN
    if found:
        raise BadModel(f"graph '{spec.name}' needs {', '.join(sorted(found))}, whose shape depends on data")
    path.parent.mkdir(parents=True, exist_ok=True)
    if graph.twin:
        _share(model, path.with_name(f"{graph.twin}.onnx"))
    own = (x.const_value for x in model.graph.initializers.values())
    weights = sum(x.nbytes for x in own if x is not None and not isinstance(x, onnx_ir.ExternalTensor))
    external = f"{path.name}.data" if weights > EXTERNAL_BYTES else None
    onnx_ir.save(model, path, external_data=external)


def _share(model: onnx_ir.Model, twin: Path) -> None:
    """Let the weights of `model` that the file `twin` has as well be read from there."""
    there = [x.const_value for x in onnx_ir.load(twin).graph.initializers.values()]
    outside = [x for x in there if isinstance(x, onnx_ir.ExternalTensor)]
    for value in model.graph.initializers.values():
        tensor = value.const_value
        for other in outside:
            if (
                tensor is not None
                and (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
                and np.array_equal(tensor.numpy(), other.numpy())
            ):
                value.const_value = onnx_ir.ExternalTensor(
                    other.location,
                    other.offset,
                    other.length,
                    other.dtype,
                    shape=other.shape,
                    name=value.name or "",
                    base_dir=twin.parent,
                )
                break


def _dynamic_shapes(graph: Graph) -> tuple[object, ...]:
    """torch.export's nesting: one entry an input, the inputs behind *args as one tuple."""
    dims = [{i: Dim.DYNAMIC for i, d in enumerate(x.shape) if isinstance(d, str)} for x in graph.spec.inputs]
    code = graph.module.forward.__func__.__code__  # type: ignore[attr-defined]
    named = code.co_argcount - 1
    return (*dims[:named], tuple(dims[named:])) if len(dims) > named else tuple(dims)


def _tidy(model: onnx_ir.Model, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    """Name the dimensions as the manifest does and drop the tracer's notes, which hold paths of this machine."""
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


def _norms_of_one_dtype(model: onnx_ir.Model) -> None:
    """Cast the input of each RMSNormalization to the dtype of its scale, which ONNX gives the output anyway.

    TensorRT's parser gives the output the dtype of the input, and what follows would no longer fit. Computed is in
    fp32 (stash_type) both ways.
    """
    for node in list(model.graph.all_nodes()):
        rows, scale = (*node.inputs, None, None)[:2]
        if node.op_type == "RMSNormalization" and rows is not None and scale is not None and rows.dtype != scale.dtype:
            assert node.graph is not None and scale.dtype is not None
            cast = onnx_ir.node("Cast", [rows], {"to": scale.dtype}, name=f"{node.name}_cast")
            cast.outputs[0].dtype, cast.outputs[0].shape = scale.dtype, rows.shape
            cast.outputs[0].name = f"{node.name}_input"
            node.graph.insert_before(node, cast)
            node.replace_input_with(0, cast.outputs[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress and deprecation chatter off the user's screen."""
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
