# SPDX-License-Identifier: Apache-2.0
"""Nodes that may overflow in fp16, whose largest number is 65504."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from secateur.export.graph_facts import Node
from secateur.export.operator_rules import Refusal

LARGEST = float(np.finfo(np.float16).max)
SOURCE = "range of fp16 (IEEE 754 binary16)"
SUMS = frozenset({"ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceProd", "CumSum"})
MASKS = frozenset({"Add", "Where"})
UPCAST = "cast to fp32 before it and back after it"


def overflow(node: Node) -> Refusal | None:
    """Return the risk of a node: an infinite constant, a sum or square in fp16, scores that are not fp32."""
    if any(np.isinf(_floats(node, name)).any() for name in node.proto.input):
        return Refusal(
            "a constant is infinite, and a row that is masked completely becomes NaN", "use a large finite number"
        )
    operator, dtype = node.operator, node.dtype(1 if node.operator == "Where" else 0)
    if operator == "Cast" and node.attribute("to") == TensorProto.FLOAT16 and (np.abs(_cast(node)) > LARGEST).any():
        return Refusal(f"a constant beyond {LARGEST:g} is cast to fp16", "make the constant smaller")
    if operator == "TopK" and dtype in ("float16", "bfloat16"):
        return Refusal(f"it compares scores in {dtype}, where many become equal", "cast the scores to fp32")
    if dtype != "float16":
        return None
    if operator in MASKS and any((np.abs(_floats(node, name)) > LARGEST / 2).any() for name in node.proto.input):
        return Refusal(
            f"a score plus a mask beyond {LARGEST / 2:g} overflows in fp16", "mask with half of the smallest number"
        )
    if operator in SUMS:
        return Refusal("a sum in fp16 overflows", UPCAST)
    if _is_square(node):
        return Refusal("squares in fp16 overflow from 256 on", UPCAST)
    if operator == "LayerNormalization" and node.attribute("stash_type", TensorProto.FLOAT) != TensorProto.FLOAT:
        return Refusal("the norm is computed in fp16, where squares overflow from 256 on", "set stash_type to 1 (fp32)")
    return None


def _floats(node: Node, name: str) -> NDArray[np.float64]:
    """Return the values of a float constant; an empty array for any other tensor."""
    values = node.facts.values(name)
    if values is None or values.dtype.kind != "f":
        return np.zeros(0)
    return values.astype(np.float64)


def _cast(node: Node) -> NDArray[np.float64]:
    """Return the constants that a Cast may convert: its input, or the inputs of a Where before it."""
    source = node.input(0)
    maker = node.facts.makers.get(source)
    names = maker.input[1:] if maker is not None and maker.op_type == "Where" else [source]
    return np.concatenate([_floats(node, name) for name in names])


def _is_square(node: Node) -> bool:
    if node.operator == "Mul":
        return node.input(0) == node.input(1)
    if node.operator != "Pow":
        return False
    exponent = node.values(1)
    return exponent is None or bool((np.abs(exponent.astype(np.float64)) > 1).any())
