# SPDX-License-Identifier: Apache-2.0
"""Weights in a traced graph: first as tensors that are read on demand, then as positions in data files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor

from secateur.checkpoints.streaming import value
from secateur.export.weights import PAGE, SUFFIX, WeightStore

Weights = Mapping[str, nn.Parameter]
SMALLEST = 256
"""Bytes; smaller constants stay in the graph, because shape inference may need them."""


def name_weights(model: onnx_ir.Model, named: Weights) -> Weights:
    """Return the parameters among the initializers, and remove their (fake) values so that no pass folds them."""
    found = dict[str, nn.Parameter]()
    for name, initializer in model.graph.initializers.items():
        if isinstance(getattr(initializer.const_value, "raw", None), FakeTensor):
            found[name] = named[name]
            initializer.const_value = None
    return found


def read_transposed(model: onnx_ir.Model, weights: Weights, store: WeightStore) -> None:
    """Give the weights values that are read on demand; those of nn.Linear as [in, out], without a Transpose."""
    for name, weight in weights.items():
        initializer = model.graph.initializers.get(name)
        if initializer is None:
            continue
        transposed = store.is_transposed(weight)
        if transposed:
            _use_transposed(initializer)
        initializer.const_value = _lazy(initializer, weight, transposed)
        initializer.shape = initializer.const_value.shape
    RemoveUnusedNodesPass()(model)


def externalize(model: onnx_ir.Model, weights: Weights, store: WeightStore | None, path: Path, limit: int) -> None:
    """Move weights to the store, and other constants of more than `limit` bytes in all to a file of this graph."""
    rest = list[onnx_ir.Value]()
    for name, initializer in model.graph.initializers.items():
        tensor = initializer.const_value
        assert tensor is not None
        place = store.place(weights[name]) if store is not None and name in weights else None
        if place is None:
            rest.append(initializer)
        else:
            initializer.const_value = _external(initializer, place.file, place.offset, place.size, path.parent)
    large = [x for x in rest if x.const_value is not None and x.const_value.nbytes >= SMALLEST]
    if sum(x.const_value.nbytes for x in large if x.const_value is not None) <= limit:
        return
    file, end = f"{path.name}{SUFFIX}", 0
    with (path.parent / file).open("xb") as out:
        for initializer in large:
            tensor = initializer.const_value
            assert tensor is not None
            start = -(-end // PAGE) * PAGE
            end = start + tensor.nbytes
            out.seek(start)
            out.write(tensor.tobytes())
            initializer.const_value = _external(initializer, file, start, tensor.nbytes, path.parent)


def _lazy(initializer: onnx_ir.Value, weight: nn.Parameter, transposed: bool) -> onnx_ir.LazyTensor:
    def read() -> onnx_ir.TensorProtocol:
        values = value(weight).T.contiguous() if transposed else value(weight)
        return onnx_ir.tensor(values, name=initializer.name)

    shape = reversed(weight.shape) if transposed else weight.shape
    assert initializer.dtype is not None
    return onnx_ir.LazyTensor(read, dtype=initializer.dtype, shape=onnx_ir.Shape(shape), name=initializer.name)


def _external(initializer: onnx_ir.Value, file: str, offset: int, size: int, folder: Path) -> onnx_ir.ExternalTensor:
    assert initializer.const_value is not None
    tensor = initializer.const_value
    return onnx_ir.ExternalTensor(
        file,
        offset,
        size,
        tensor.dtype,
        shape=onnx_ir.Shape(tensor.shape.numpy()),
        name=initializer.name or "",
        base_dir=folder,
    )


def _use_transposed(weight: onnx_ir.Value) -> None:
    """Change the readers of a weight [out, in] to read [in, out]."""
    transposed: onnx_ir.Value | None = None
    for node, index in list(weight.uses()):
        if node.op_type == "Transpose" and list(node.attributes["perm"].as_ints()) == [1, 0]:
            node.outputs[0].replace_all_uses_with(weight)
        elif node.op_type == "Gemm" and index < 2:
            name = ("transA", "transB")[index]
            flag = node.attributes.get(name)
            node.attributes[name] = onnx_ir.AttrInt64(name, 0 if flag is not None and flag.as_int() else 1)
        else:
            if transposed is None:
                transposed = _transpose(weight, node)
            node.replace_input_with(index, transposed)


def _transpose(weight: onnx_ir.Value, node: onnx_ir.Node) -> onnx_ir.Value:
    turned = onnx_ir.node("Transpose", [weight], {"perm": [1, 0]}, name=f"{weight.name}_transpose")
    turned.outputs[0].name = f"{weight.name}_transposed"
    turned.outputs[0].shape = weight.shape
    if weight.dtype is not None:
        turned.outputs[0].dtype = weight.dtype
    assert node.graph is not None
    node.graph.insert_before(node.graph[0], turned)
    return turned.outputs[0]
