# SPDX-License-Identifier: Apache-2.0
"""Weights of matrix products as inputs of a graph, so that the TensorRT plans of all profiles share one copy of them.

TensorRT stores constants in a plan, once for each profile; an input is in memory once. TensorRT for RTX 1.7
multiplies by an input [1, N, K] without a copy if Transpose(0, 2, 1) and MatMul read it and the rows are [1, B S, K].
Other layouts cost more kernels or a copy of the weight in each step, as do rows [B, S, K] if B varies. Products of the
same rows, such as queries, keys and values, become one product of the joined weights and a Split.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from secateur.bundle.manifest import WeightSpec
from secateur.export.weights import Weights, WeightStore


class Product(NamedTuple):
    """A MatMul of `rows` [..., S, K] and the transpose of `weight` [N, K]."""

    node: onnx_ir.Node
    rows: onnx_ir.Value
    weight: onnx_ir.Value


def weights_as_inputs(model: onnx_ir.Model, weights: Weights, store: WeightStore) -> tuple[WeightSpec, ...]:
    """Replace the weights of products and embeddings by inputs, in place; return them in the order of the inputs.

    weights  parameters by the names of their initializers

    Weights that are used in another way stay constants, as do those that are not in the store.
    """
    for node in list(model.graph):
        if node.op_type == "Gemm":
            _replace_gemm(model, node)
    movable = {
        initializer
        for name, weight in weights.items()
        if weight.dim() == 2 and store.has(weight)
        if (initializer := model.graph.initializers.get(name)) is not None
        if _is_table(initializer) or _is_multiplied(initializer)
    }
    made = {_input(table, table.name, table.shape): table for table in movable if _is_table(table)}
    for value, table in made.items():
        table.replace_all_uses_with(value)
    for group in _groups(model, movable):
        joined = len(group) > 1 and store.join([weights[product.weight.name or ""] for product in group])
        for part in [group] if joined else [[product] for product in group]:
            made[_multiply(model, part)] = part[0].weight
    RemoveUnusedNodesPass()(model)
    specs = []
    for value, first in sorted(made.items(), key=lambda item: item[0].name or ""):
        model.graph.inputs.append(value)
        place = store.place(weights[first.name or ""])
        assert place is not None and value.dtype is not None and value.shape is not None
        dtype = value.dtype.numpy().name
        specs.append(WeightSpec(value.name or "", dtype, value.shape.numpy(), place.file, place.offset))
    return tuple(specs)


def _replace_gemm(model: onnx_ir.Model, node: onnx_ir.Node) -> None:
    """Replace a Gemm by the transpose of a constant by Transpose, MatMul and Add."""
    settings = {name: attribute.value for name, attribute in node.attributes.items()}
    rows, weight, *bias = node.inputs
    plain = {"transA": 0, "alpha": 1.0, "beta": 1.0} | settings == {"transA": 0, "alpha": 1.0, "beta": 1.0, "transB": 1}
    if rows is None or weight is None or not plain or not weight.is_initializer():
        return
    name = node.name or ""
    turned = _node("Transpose", [weight], f"{name}.transpose", perm=[1, 0])
    made = [turned, _node("MatMul", [rows, turned.outputs[0]], f"{name}.product")]
    if bias and bias[0] is not None:
        made.append(_node("Add", [made[-1].outputs[0], bias[0]], f"{name}.bias"))
    _replace(model, [node], made, made[-1].outputs)


def _is_table(weight: onnx_ir.Value) -> bool:
    """Return whether the graph takes rows of the weight, which depend on its inputs, and nothing else."""
    return bool(weight.uses()) and all(
        node.op_type == "Gather"
        and index == 0
        and node.attributes.get_int("axis", 0) == 0
        and (rows := node.inputs[1]) is not None
        and rows.const_value is None
        for node, index in weight.uses()
    )


def _is_multiplied(weight: onnx_ir.Value) -> bool:
    """Return whether every use of the weight is a product with its transpose, of which no other product is made."""
    uses = [node for node, _ in weight.uses()]
    if len(uses) != 1 or uses[0].op_type != "Transpose" or list(uses[0].attributes["perm"].as_ints()) != [1, 0]:
        return False
    products = list(uses[0].outputs[0].uses())
    return len(products) == 1 and products[0].node.op_type == "MatMul" and products[0].idx == 1


def _groups(model: onnx_ir.Model, movable: set[onnx_ir.Value]) -> list[list[Product]]:
    """Return the products by movable weights in the order of the graph, those of the same rows together."""
    groups: dict[tuple[onnx_ir.Value, onnx_ir.DataType | None], list[Product]] = {}
    for node in model.graph:
        transpose = node.inputs[1].producer() if node.op_type == "MatMul" and node.inputs[1] is not None else None
        rows, weight = node.inputs[0] if node.inputs else None, transpose.inputs[0] if transpose is not None else None
        if rows is not None and weight is not None and weight in movable:
            groups.setdefault((rows, weight.dtype), []).append(Product(node, rows, weight))
    return list(groups.values())


def _multiply(model: onnx_ir.Model, group: Sequence[Product]) -> onnx_ir.Value:
    """Replace products of the same rows by one product with an input [1, N, K], and return the input."""
    rows, weights = group[0].rows, [product.weight for product in group]
    shapes = [weight.shape.numpy() for weight in weights if weight.shape is not None]
    sizes = [shape[0] for shape in shapes]
    name = _joined([weight.name or "" for weight in weights])
    value = _input(weights[0], name, onnx_ir.Shape((1, sum(sizes), shapes[0][1])))
    width = _constant(model, f"{name}.flat", [1, -1, shapes[0][1]]), _constant(model, f"{name}.width", [sum(sizes)])
    made = [
        turned := _node("Transpose", [value], f"{name}.transpose", perm=[0, 2, 1]),
        flat := _node("Reshape", [rows, width[0]], f"{name}.rows"),
        product := _node("MatMul", [flat.outputs[0], turned.outputs[0]], f"{name}.product"),
        others := _node("Shape", [rows], f"{name}.others", end=-1),
        shape := _node("Concat", [others.outputs[0], width[1]], f"{name}.shape", axis=0),
        _node("Reshape", [product.outputs[0], shape.outputs[0]], f"{name}.back"),
    ]
    if len(group) > 1:
        split = _constant(model, f"{name}.sizes", sizes)
        made.append(_node("Split", [made[-1].outputs[0], split], f"{name}.parts", len(group), axis=-1))
    _replace(model, [product.node for product in group], made, made[-1].outputs)
    return value


def _replace(
    model: onnx_ir.Model, old: Sequence[onnx_ir.Node], new: Sequence[onnx_ir.Node], results: Sequence[onnx_ir.Value]
) -> None:
    """Put nodes in the place of the first of some others; each of these gives one of the results."""
    outputs = [node.outputs[0] for node in old]
    onnx_ir.convenience.replace_nodes_and_values(model.graph, old[0], old, new, outputs, results)


def _node(operator: str, inputs: Sequence[onnx_ir.Value | None], name: str, outputs: int = 1, **settings: Any) -> Any:
    made = onnx_ir.node(operator, inputs, settings, num_outputs=outputs, name=name)
    for number, output in enumerate(made.outputs):
        output.name = f"{name}.{number}"
    return made


def _constant(model: onnx_ir.Model, name: str, numbers: Sequence[int]) -> onnx_ir.Value:
    tensor = onnx_ir.tensor(np.array(numbers, np.int64), name=name)
    value = onnx_ir.Value(
        name=name, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape([len(numbers)]), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value


def _input(weight: onnx_ir.Value, name: str | None, shape: onnx_ir.Shape | None) -> onnx_ir.Value:
    return onnx_ir.Value(name=f"weight.{name}", type=weight.type, shape=shape)


def _joined(names: Sequence[str]) -> str:
    """Return one name of several weights: a.q_proj.weight, a.k_proj.weight -> a.q_proj+k_proj.weight."""
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) > 1:
        return "+".join(names)
    return ".".join("+".join(dict.fromkeys(words)) for words in zip(*parts, strict=True))
