# SPDX-License-Identifier: Apache-2.0
"""The greedy picks of a gate, for TensorRT: the index of the first largest value without TopK.

TensorRT makes a kernel of its own of every TopK. A maximum, a comparison and a minimum are merged with the row that is
read before, so that a pick is one kernel instead of two, and equal values give the lower index by definition. ONNX
Runtime is faster with TopK.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnx_ir.tape import Tape


def replace_single_topk(model: onnx_ir.Model) -> None:
    """Replace every TopK of one largest value, of whose outputs only the index is used, in place.

    ReduceMax, Less, Where, ReduceMin, Cast: the smallest index whose value is not below the maximum; indices in fp32,
    which is exact below 2**24.
    """
    for node in list(model.graph):
        if node.op_type == "TopK" and _is_first_maximum(node):
            _replace(model.graph, node)


def _is_first_maximum(node: onnx_ir.Node) -> bool:
    count, values = node.inputs[1], node.outputs[0]
    constant = onnx_ir.convenience.get_const_tensor(count) if count is not None else None
    return (
        constant is not None
        and constant.numpy().tolist() == [1]
        and not values.uses()
        and not values.is_graph_output()
        and node.attributes.get_int("largest", 1) == 1
        and _last_axis(node)
    )


def _last_axis(node: onnx_ir.Node) -> bool:
    """Return whether it chooses along the last axis, of a fixed size."""
    values = node.inputs[0]
    if values is None or values.shape is None or not isinstance(values.shape[-1], int):
        return False
    return node.attributes.get_int("axis", -1) in (-1, len(values.shape) - 1)


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node) -> None:
    values, index = node.inputs[0], node.outputs[1]
    assert values is not None and values.shape is not None
    size = values.shape[-1]
    assert isinstance(size, int)
    axis = _constant(graph, "last_axis", np.array([-1], np.int64))
    order = _constant(graph, f"order_{size}", np.arange(size, dtype=np.float32))
    last = _constant(graph, f"last_{size}", np.float32(size - 1))
    tape = Tape()
    most = tape.op("ReduceMax", [values, axis], {"keepdims": 1})
    below = tape.op("Less", [values, most])
    first = tape.op("ReduceMin", [tape.op("Where", [below, last, order]), axis], {"keepdims": 1})
    found = tape.op("Cast", [first], {"to": onnx_ir.DataType.INT64})
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], list(tape.nodes), [index], [found])


def _constant(graph: onnx_ir.Graph, name: str, array: np.ndarray[Any, Any] | np.float32) -> onnx_ir.Value:
    """Return the initializer of this name, made at the first call."""
    if name not in graph.initializers:
        tensor = onnx_ir.tensor(array, name=name)
        kind, shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(array.shape)
        graph.register_initializer(onnx_ir.Value(name=name, type=kind, shape=shape, const_value=tensor))
    return graph.initializers[name]
