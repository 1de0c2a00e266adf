# SPDX-License-Identifier: Apache-2.0
"""Equal forms of a traced graph that runtimes read correctly and TensorRT fuses better."""

from __future__ import annotations

import numpy as np
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)


def simplify(model: onnx_ir.Model) -> None:
    """Rewrite a graph in place, before its weights are written."""
    _norms_of_one_dtype(model)
    _drop_squeezes(model)
    _scale_queries_only(model)
    RemoveUnusedNodesPass()(model)


def _norms_of_one_dtype(model: onnx_ir.Model) -> None:
    """Cast the input of each RMSNormalization to the dtype of its scale, which is the dtype of the output in ONNX.

    ONNX Runtime cannot open the graph otherwise. The norm is computed in fp32 (stash_type) in both cases.
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


def _drop_squeezes(model: onnx_ir.Model) -> None:
    """Remove an Unsqueeze of a Squeeze of the same axes, as of rotary tables, which keep TensorRT from fusing."""
    for node in model.graph.all_nodes():
        before = node.inputs[0].producer() if node.op_type == "Unsqueeze" and node.inputs[0] is not None else None
        if before is not None and before.op_type == "Squeeze" and before.inputs[0] is not None:
            axes = [_numbers(each.inputs[1]) for each in (node, before) if len(each.inputs) > 1]
            if len(axes) == 2 and axes[0] is not None and axes[0] == axes[1] and not node.outputs[0].is_graph_output():
                node.outputs[0].replace_all_uses_with(before.inputs[0])


def _numbers(value: onnx_ir.Value | None) -> list[int] | None:
    """Return the values of a constant, None of another tensor."""
    return None if value is None or value.const_value is None else value.const_value.numpy().tolist()


def _scale_queries_only(model: onnx_ir.Model) -> None:
    """Multiply queries by the scale of attention, instead of queries and keys by its root as the exporter does.

    It saves two kernels a layer of CLIP's vision encoder (TensorRT for RTX 1.7).
    """
    for node in model.graph.all_nodes():
        makers = [x.producer() if x is not None else None for x in node.inputs[:2]] if node.op_type == "MatMul" else []
        if len(makers) < 2 or any(maker is None or maker.op_type != "Mul" for maker in makers):
            continue
        (query, root), (key, other) = (_scaled(maker) for maker in makers if maker is not None)
        if query is None or key is None or root is None or root is not other:
            continue
        assert root.const_value is not None and node.graph is not None
        exact = np.square(root.const_value.numpy().astype(np.float64))
        scale = onnx_ir.tensor(exact.astype(root.const_value.numpy().dtype))
        if root.dtype not in FLOATS or not np.isfinite(scale.numpy()).all() or not scale.numpy().all():
            continue
        name = f"{node.name}_scale"
        value = onnx_ir.Value(name=name, type=root.type, shape=root.shape, const_value=scale)
        scale.name = name
        model.graph.register_initializer(value)
        product = onnx_ir.node("Mul", [query, value], name=f"{node.name}_query")
        product.outputs[0].name = f"{node.name}_scaled"
        product.outputs[0].type, product.outputs[0].shape = query.type, query.shape
        node.graph.insert_before(node, product)
        node.replace_input_with(0, product.outputs[0])
        node.replace_input_with(1, key)


def _scaled(node: onnx_ir.Node) -> tuple[onnx_ir.Value | None, onnx_ir.Value | None]:
    """Return tensor and scalar constant of a Mul; None for another Mul."""
    constants = [x for x in node.inputs if x is not None and x.const_value is not None and x.const_value.size == 1]
    others = [x for x in node.inputs if x is not None and x not in constants]
    return (others[0], constants[0]) if len(constants) == len(others) == 1 else (None, None)
