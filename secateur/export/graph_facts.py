# SPDX-License-Identifier: Apache-2.0
"""Facts about an ONNX graph: dtypes, shapes, constants; without its weights and without running it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import AttributeProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper
from onnx.inliner import inline_local_functions
from onnx.shape_inference import infer_shapes

SMALL = 1 << 20  # largest constant whose values are read, in bytes
SAME = ("Identity", "Reshape", "Squeeze", "Unsqueeze", "Flatten")  # operators that keep the values
CONSTANT = {"value": None, "value_float": "f4", "value_floats": "f4", "value_int": "i8", "value_ints": "i8"}


@dataclass(frozen=True)
class Facts:
    """A graph with its local functions inlined, and its tensors by name.

    dtypes     such as "float16"; a tensor whose type cannot be inferred is missing
    shapes     a number or None for each dimension; a tensor of unknown rank is missing
    makers     the node that computes a tensor
    constants  initializers and outputs of Constant, also after nodes that only reshape them
    folded     tensors computed from constants alone
    sizes      tensors computed from constants and shapes alone, not from the values of an input
    """

    model: onnx.ModelProto
    dtypes: Mapping[str, str]
    shapes: Mapping[str, tuple[int | None, ...]]
    makers: Mapping[str, NodeProto]
    constants: Mapping[str, TensorProto]
    folded: frozenset[str]
    sizes: frozenset[str]

    @classmethod
    def of(cls, model: onnx.ModelProto | Path) -> Facts:
        """Return the facts of a model or file; weights in other files are not read."""
        if isinstance(model, Path):
            model = onnx.load(model, load_external_data=False)
        if model.functions:
            model = inline_local_functions(model)
        graph = infer_shapes(model, data_prop=True).graph
        values = [*graph.value_info, *graph.output, *graph.input]
        dtypes = {v.name: _dtype(v.type.tensor_type.elem_type) for v in values if v.type.tensor_type.elem_type}
        shapes = {v.name: _shape(v) for v in values if v.type.tensor_type.HasField("shape")}
        for initializer in graph.initializer:
            dtypes[initializer.name] = _dtype(initializer.data_type)
            shapes[initializer.name] = tuple(initializer.dims)
        folded, sizes = _input_free(model.graph), _input_free(model.graph, ("Shape", "Size"))
        makers = {name: node for node in model.graph.node for name in node.output}
        return cls(model, dtypes, shapes, makers, _constants(model.graph), folded, sizes)

    def values(self, name: str) -> NDArray[Any] | None:
        """Return the values of a small constant, flat, bf16 as fp32; None for any other tensor."""
        tensor = self.constants.get(name)
        if tensor is None or tensor.data_location == TensorProto.EXTERNAL or tensor.ByteSize() > SMALL:
            return None
        array = numpy_helper.to_array(tensor).reshape(-1)
        return array.astype(np.float32) if tensor.data_type == TensorProto.BFLOAT16 else array

    @property
    def nodes(self) -> list[Node]:
        return [Node(proto, i, self) for i, proto in enumerate(self.model.graph.node)]


@dataclass(frozen=True)
class Node:
    """A node and the facts of its tensors; `number` is its index in the graph."""

    proto: NodeProto
    number: int
    facts: Facts

    @property
    def operator(self) -> str:
        """The operator, prefixed with its domain if that is not ONNX's own."""
        domain = self.proto.domain
        return self.proto.op_type if domain in ("", "ai.onnx") else f"{domain}.{self.proto.op_type}"

    @property
    def name(self) -> str:
        return self.proto.name or f"number {self.number}"

    def attribute(self, name: str, default: Any = None) -> Any:
        found: AttributeProto
        for found in self.proto.attribute:
            if found.name == name:
                value = helper.get_attribute_value(found)
                return value.decode() if isinstance(value, bytes) else value
        return default

    def input(self, i: int) -> str:
        """Return the name of input `i`; "" if the node does not have it."""
        return self.proto.input[i] if i < len(self.proto.input) else ""

    def output(self, i: int) -> str:
        return self.proto.output[i] if i < len(self.proto.output) else ""

    def dtype(self, i: int) -> str | None:
        return self.facts.dtypes.get(self.input(i))

    def shape(self, i: int) -> tuple[int | None, ...] | None:
        return self.facts.shapes.get(self.input(i))

    def is_constant(self, i: int) -> bool:
        return self.input(i) in self.facts.constants

    def values(self, i: int) -> NDArray[Any] | None:
        """Return the values of a constant input, see `Facts.values`."""
        return self.facts.values(self.input(i))


def _dtype(number: int) -> str:
    name = TensorProto.DataType.Name(number).lower()
    return "float32" if name == "float" else name


def _shape(value: ValueInfoProto) -> tuple[int | None, ...]:
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim)


def _constants(graph: onnx.GraphProto) -> dict[str, TensorProto]:
    inputs = {value.name for value in graph.input}  # a caller may override an initializer that is an input
    found = {tensor.name: tensor for tensor in graph.initializer if tensor.name not in inputs}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute[0].name in CONSTANT:
            found[node.output[0]] = _constant(node)
        elif node.op_type in SAME and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _constant(node: NodeProto) -> TensorProto:
    value = helper.get_attribute_value(node.attribute[0])
    dtype = CONSTANT[node.attribute[0].name]
    return value if dtype is None else numpy_helper.from_array(np.asarray(value, dtype))


def _input_free(graph: onnx.GraphProto, also: tuple[str, ...] = ()) -> frozenset[str]:
    """Return the tensors that depend on no input of the graph, except through one of the operators `also`."""
    inputs = {value.name for value in graph.input}
    found = {tensor.name for tensor in graph.initializer} - inputs
    for node in graph.node:
        if node.op_type in also or all(name in found for name in node.input if name):
            found.update(node.output)
    return frozenset(found)
