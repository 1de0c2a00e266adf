# SPDX-License-Identifier: Apache-2.0
"""Decoder segments with quantized weights: in the graph, and in torch to check the graph.

Only linear layers of decoder layers are quantized: they have nearly all of the weights. The head is not, because its
errors change the logits directly, and because small models tie it to the embedding. Nor are vision encoder and
projector, which run once per image, and the gates, which compute in fp32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import onnx_ir
import torch
from torch import Tensor, nn

from secateur.bundle.manifest import OPERATOR, Quantization
from secateur.checkpoints.streaming import is_streamed
from secateur.export.quantize import QuantizedWeight, check_width, quantize, rounded

FLOATS = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16, onnx_ir.DataType.BFLOAT16)
PASSING = ("Cast", "Identity", "Reshape", "Squeeze")
LOGITS = "logits"


def quantize_graph(model: onnx_ir.Model, how: Quantization) -> tuple[str, ...]:
    """Quantize the weights of a segment's MatMul nodes, in place; returns the names of the weights.

    Weights are read one at a time, so only the integers stay in memory.

    Raises:
        InputError: a weight cannot be quantized.
    """
    done: dict[onnx_ir.Value, list[onnx_ir.Value]] = {}
    for node in list(model.graph):
        weight = _weight(node)
        if weight is None or _makes_logits(node):
            continue
        if weight not in done:
            assert weight.const_value is not None
            done[weight] = _register(model, weight.name or "", quantize(weight.const_value.numpy(), how), how)
        _swap(node, weight, done[weight], how)
    for weight in done:
        if not weight.uses():
            model.graph.initializers.pop(weight.name or "", None)
    if done and how.operator == OPERATOR:
        model.graph.opset_imports["com.microsoft"] = 1
    return tuple(weight.name or "" for weight in done)


def quantized_parameters(layers: Iterable[nn.Module]) -> frozenset[nn.Parameter]:
    """Return the parameters of decoder layers that `quantize_graph` replaces, so that no file needs them."""
    return frozenset(module.get_parameter("weight") for module in _linear(layers))


def check_blocks(layers: Iterable[nn.Module], how: Quantization | None) -> None:
    """Check, before long work, that every linear weight of decoder layers has whole blocks where these are needed.

    Raises:
        InputError: see `quantize.check_width`.
    """
    for module in _linear(layers) if how is not None else ():
        assert how is not None
        check_width(module.in_features, how)


@contextmanager
def weights_as_stored(layers: Iterable[nn.Module], how: Quantization) -> Iterator[None]:
    """Run the linear layers in `layers` with their quantized weights within the block.

    Streamed weights are rounded whenever they are read. Graphs that need the exact weights (gates) must be built
    before: a parameter gets new data, its old data is not changed.
    """
    with ExitStack() as undo:
        for module in _linear(layers):
            if is_streamed(module):
                undo.enter_context(_rounded_when_run(module, how))
            else:
                undo.callback(setattr, module.weight, "data", module.weight.data)
                module.weight.data = _rounded(module.weight.data, how)
        yield


@contextmanager
def _rounded_when_run(module: nn.Linear, how: Quantization) -> Iterator[None]:
    """Round a streamed weight after the hook that reads it, see secateur.checkpoints.streaming."""
    swapped: list[tuple[Any, nn.Parameter]] = []

    def before(_: nn.Module, __: Any) -> None:
        read = module.weight
        module.weight = nn.Parameter(_rounded(read.data, how), requires_grad=False)
        swapped.append((read, module.weight))

    def after(_: nn.Module, __: Any, ___: Any) -> None:
        read, ours = swapped.pop()
        if module.weight is ours:  # else another hook has released the weight already
            module.weight = read

    handles = module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounded(weight: Tensor, how: Quantization) -> Tensor:
    """Quantize and dequantize a weight [out, in] of torch."""
    plain = weight.float().T.contiguous().cpu().numpy()  # through fp32: torch cannot convert bf16 to numpy
    stored = rounded(plain.astype(str(weight.dtype).removeprefix("torch.")), how)
    return torch.from_numpy(stored.astype("float32")).T.contiguous().to(weight.device, weight.dtype)


def _linear(layers: Iterable[nn.Module]) -> list[nn.Linear]:
    return [module for layer in layers for module in layer.modules() if isinstance(module, nn.Linear)]


def _weight(node: onnx_ir.Node) -> onnx_ir.Value | None:
    """Return the constant matrix of a MatMul; None for another node."""
    if node.op_type != "MatMul" or node.domain not in ("", "ai.onnx"):
        return None
    value = node.inputs[1]
    tensor = value.const_value if value is not None and value.is_initializer() else None
    return value if tensor is not None and len(tensor.shape) == 2 and tensor.dtype in FLOATS else None


def _makes_logits(node: onnx_ir.Node) -> bool:
    """Return whether the output of the node is the logits, possibly after a cast or reshape."""
    value = node.outputs[0]
    if value.name == LOGITS:
        return True
    after = [use.node for use in value.uses()]
    return len(after) == 1 and after[0].op_type in PASSING and _makes_logits(after[0])


def _register(model: onnx_ir.Model, name: str, stored: QuantizedWeight, how: Quantization) -> list[onnx_ir.Value]:
    arrays = {f"{name}.{how.name}": stored.integers, f"{name}.scales": stored.scales}
    if stored.zero_points is not None:
        arrays[f"{name}.zero_points"] = stored.zero_points
    made = []
    for title, array in arrays.items():
        tensor = onnx_ir.tensor(array, name=title)
        kind, shape = onnx_ir.TensorType(tensor.dtype), onnx_ir.Shape(array.shape)
        value = onnx_ir.Value(name=title, type=kind, shape=shape, const_value=tensor)
        model.graph.register_initializer(value)
        made.append(value)
    return made


def _swap(node: onnx_ir.Node, weight: onnx_ir.Value, stored: list[onnx_ir.Value], how: Quantization) -> None:
    """Replace a MatMul by MatMulNBits, or read its weight through a DequantizeLinear."""
    graph, rows = node.graph, node.inputs[0]
    assert graph is not None
    if how.operator != OPERATOR:
        settings = {"axis": 0, "block_size": how.block_size}
        made = onnx_ir.node("DequantizeLinear", stored, settings, name=f"{node.name}.weight")
        made.outputs[0].name, made.outputs[0].type = f"{node.name}.dequantized", weight.type
        made.outputs[0].shape = weight.shape
        graph.insert_before(node, made)
        node.replace_input_with(1, made.outputs[0])
        return
    assert weight.shape is not None
    inputs, outputs = weight.shape.numpy()
    settings = {"K": inputs, "N": outputs, "bits": how.bits, "block_size": how.block_size}
    if how.accuracy_level:
        settings["accuracy_level"] = how.accuracy_level
    made = onnx_ir.node("MatMulNBits", [rows, *stored], settings, domain="com.microsoft", name=node.name)
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], [made], node.outputs, made.outputs)
