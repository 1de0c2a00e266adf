# SPDX-License-Identifier: Apache-2.0
"""The parser, and the network that it fills: here the ONNX model itself and its inputs and outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, numpy_helper
from simulated import settings

from tensorrt._enumerations import DataType, ErrorCode
from tensorrt._logging import ILogger, Reporter
from tensorrt._values import Dims, integer, text

TYPES: dict[int, DataType] = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.BFLOAT16: DataType.BF16,
    TensorProto.INT8: DataType.INT8,
    TensorProto.INT32: DataType.INT32,
    TensorProto.INT64: DataType.INT64,
    TensorProto.UINT8: DataType.UINT8,
    TensorProto.BOOL: DataType.BOOL,
}
SINCE = {
    "Attention": (10, 14),
    "RotaryEmbedding": (10, 15),
    "RMSNormalization": (10, 15),
    "TensorScatter": (10, 15),
    "Swish": (11, 0),
}
NEVER = frozenset({"Unique", "Compress", "SequenceConstruct", "SequenceAt", "OptionalGetElement"})
MOST = 3840
"""Largest K of TopK."""


class ITensor:
    """An input or output; `dimension_names` are the symbols of its dynamic dimensions."""

    __slots__ = ("_names", "dtype", "is_network_input", "name", "shape")

    def __init__(self, value: onnx.ValueInfoProto, is_input: bool) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = TYPES[kind.elem_type]
        self.shape = Dims([-1 if d.dim_param or not d.HasField("dim_value") else d.dim_value for d in kind.shape.dim])
        self.is_network_input = is_input
        self._names = tuple(dim.dim_param for dim in kind.shape.dim)

    def get_dimension_name(self, index: int) -> str:
        return str(self._names[integer(index, "index")])


class INetworkDefinition:
    """`_model` and `_path` are what the parser read, None before."""

    __slots__ = ("_inputs", "_model", "_outputs", "_path", "name")

    def __init__(self) -> None:
        self.name = "Unnamed Network 0"
        self._model: Any = None
        self._path = ""
        self._inputs: list[ITensor] = []
        self._outputs: list[ITensor] = []

    @property
    def num_inputs(self) -> int:
        return len(self._inputs)

    @property
    def num_outputs(self) -> int:
        return len(self._outputs)

    def get_input(self, index: int) -> ITensor:
        return self._inputs[integer(index, "index")]

    def get_output(self, index: int) -> ITensor:
        return self._outputs[integer(index, "index")]

    def _fill(self, model: Any, path: str) -> None:
        """Called by the parser."""
        weights = {value.name for value in model.graph.initializer}
        self._model, self._path = model, path
        self._inputs = [ITensor(value, True) for value in model.graph.input if value.name not in weights]
        self._outputs = [ITensor(value, False) for value in model.graph.output]


class ParserError:
    """One thing that the parser could not take."""

    __slots__ = ("_code", "_description", "_index", "_node")

    def __init__(self, code: ErrorCode, description: str, index: int = -1, node: Any = None) -> None:
        self._code, self._description, self._index, self._node = code, description, index, node

    def code(self) -> ErrorCode:
        return self._code

    def desc(self) -> str:
        return self._description

    def node(self) -> int:
        return self._index

    def node_name(self) -> str:
        return self._node.name if self._node else ""

    def node_operator(self) -> str:
        return self._node.op_type if self._node else ""

    def __str__(self) -> str:
        where = (
            f"In node {self._index} with name: {self.node_name()} and operator: {self.node_operator()} (parseNode): "
        )
        return f"{where if self._node else ''}{self._code.name}: {self._description}"


class OnnxParser:
    """Reads a model into a network."""

    __slots__ = ("_errors", "_network", "_reporter")

    def __init__(self, network: INetworkDefinition, logger: ILogger) -> None:
        self._network, self._reporter = network, Reporter(logger)
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> ParserError:
        return self._errors[integer(index, "index")]

    def clear_errors(self) -> None:
        self._errors.clear()

    def parse_from_file(self, model: str) -> bool:
        """External data are looked for beside the file."""
        path = text(model, "model")
        try:
            loaded = onnx.load(path)
            if not loaded.graph.node:
                raise ValueError("it has no nodes")
        except Exception as problem:
            self._errors.append(ParserError(ErrorCode.MODEL_DESERIALIZE_FAILED, f"Failed to parse {path}: {problem}"))
            return False
        self._errors += errors(loaded)
        if not self._errors:
            self._network._fill(loaded, str(Path(path).resolve()))
        return not self._errors


def errors(model: Any) -> list[ParserError]:
    """What this version cannot take."""
    found = []
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type not in TYPES:
            found.append(ParserError(ErrorCode.UNSUPPORTED_NODE_DATATYPE, f"{value.name} has a type without a match"))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for index, node in enumerate(model.graph.node):
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
        if reason := refusal(node, constants):
            found.append(ParserError(ErrorCode.UNSUPPORTED_NODE, reason, index, node))
    return found


def refusal(node: Any, constants: dict[str, Any]) -> str:
    """Why the node cannot be parsed, or ""."""
    needed = SINCE.get(node.op_type, (0, 0))
    foreign = node.domain not in ("", "ai.onnx")
    if foreign or node.op_type in NEVER | settings.unsupported() or settings.version() < needed:
        return f"No importer registered for op: {node.op_type}"
    if node.op_type == "TopK":
        k = constants.get(node.input[1])
        if k is not None and int(numpy_helper.to_array(k).item()) > MOST:
            return f"K exceeds the maximum value allowed ({MOST})"
        if any(attribute.name == "sorted" and attribute.i == 0 for attribute in node.attribute):
            return "TopK must be sorted"
    return ""
