# SPDX-License-Identifier: Apache-2.0
"""A minimal graph of each operator that the tables of TensorRT allow, in each dtype."""

from __future__ import annotations

import onnx
from onnx import compose, defs

from secateur.export.operator_rules import ANY
from tests.export.rules import model

OPSET = 20
NAMES = {"float32": "float", "double": "double"}  # where ONNX's notation differs from numpy
TEXTS = {
    "Abs Ceil Clip Cos Elu Erf Exp Floor Gelu HardSigmoid Identity LeakyRelu Log LogSoftmax Neg Not Reciprocal Relu "
    "Round Sigmoid Sign Sin Softmax Softplus Sqrt Tan Tanh Trilu": "({t}[2,9] x) => ({t}[2,9] y) {{ y = {o}(x) }}",
    "Add And Div Max Mean Min Mul Or Pow Sub Sum Xor": "({t}[2,9] x, {t}[2,9] z) => ({t}[2,9] y) {{ y = {o}(x, z) }}",
    "Mod": "({t}[2,9] x, {t}[2,9] z) => ({t}[2,9] y) {{ y = Mod<fmod = 1>(x, z) }}",
    "Equal Greater GreaterOrEqual Less LessOrEqual": ("({t}[2,9] x, {t}[2,9] z) => (bool[2,9] y) {{ y = {o}(x, z) }}"),
    "Where": "(bool[2,9] c, {t}[2,9] x, {t}[2,9] z) => ({t}[2,9] y) {{ y = Where(c, x, z) }}",
    "Cast": "({t}[2,9] x) => (int32[2,9] y) {{ y = Cast<to = 6>(x) }}",
    "CastLike": "({t}[2,9] x, int32[1] z) => (int32[2,9] y, int32[1] w) {{ y = CastLike(x, z) w = Neg(z) }}",
    "Gemm MatMul": "({t}[2,9] x, {t}[9,3] z) => ({t}[2,3] y) {{ y = {o}(x, z) }}",
    "Conv": "({t}[1,2,9,9] x, {t}[3,2,3,3] w) => ({t}[1,3,7,7] y) {{ y = Conv(x, w) }}",
    "LayerNormalization": "({t}[2,8] x, {t}[8] s) => ({t}[2,8] y) {{ y = LayerNormalization(x, s) }}",
    "Einsum": '({t}[2,3] x, {t}[3,4] z) => ({t}[2,4] y) {{ y = Einsum<equation = "ij,jk->ik">(x, z) }}',
    "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare": (
        "({t}[2,9] x) => ({t}[2,1] y) <int64[1] a = {{1}}> {{ y = {o}(x, a) }}"
    ),
    "ArgMax ArgMin": "({t}[2,9] x) => (int64[2,1] y) {{ y = {o}<axis = 1>(x) }}",
    "CumSum": "({t}[2,9] x) => ({t}[2,9] y) <int64 a = {{1}}> {{ y = CumSum(x, a) }}",
    "TopK": "({t}[2,9] x) => ({t}[2,3] v, int64[2,3] i) <int64[1] k = {{3}}> {{ v, i = TopK(x, k) }}",
    "Gather": "({t}[2,9] x, int64[3] i) => ({t}[3,9] y) {{ y = Gather(x, i) }}",
    "GatherElements": "({t}[2,9] x, int64[2,9] i) => ({t}[2,9] y) {{ y = GatherElements(x, i) }}",
    "GatherND": "({t}[2,9] x, int64[3,1] i) => ({t}[3,9] y) {{ y = GatherND(x, i) }}",
    "ScatterElements": (
        "({t}[2,9] x, int64[2,3] i, {t}[2,3] u) => ({t}[2,9] y) {{ y = ScatterElements<axis = 1>(x, i, u) }}"
    ),
    "ScatterND": "({t}[9] x, int64[2,1] i, {t}[2] u) => ({t}[9] y) {{ y = ScatterND(x, i, u) }}",
    "Concat": "({t}[2,9] x) => ({t}[4,9] y) {{ y = Concat<axis = 0>(x, x) }}",
    "Flatten": "({t}[2,3,3] x) => ({t}[2,9] y) {{ y = Flatten(x) }}",
    "Transpose": "({t}[2,9] x) => ({t}[9,2] y) {{ y = Transpose(x) }}",
    "Shape": "({t}[B,9] x) => (int64[2] y, {t}[9,B] z) {{ y = Shape(x) z = Transpose(x) }}",
    "Size": "({t}[B,9] x) => (int64 y, {t}[9,B] z) {{ y = Size(x) z = Transpose(x) }}",
    "Squeeze": "({t}[1,9] x) => ({t}[9] y) <int64[1] a = {{0}}> {{ y = Squeeze(x, a) }}",
    "Unsqueeze": "({t}[9] x) => ({t}[1,9] y) <int64[1] a = {{0}}> {{ y = Unsqueeze(x, a) }}",
    "Expand": "({t}[1,9] x) => ({t}[2,9] y) <int64[2] s = {{2, 9}}> {{ y = Expand(x, s) }}",
    "Reshape": "({t}[2,9] x) => ({t}[9,2] y) <int64[2] s = {{9, 2}}> {{ y = Reshape(x, s) }}",
    "Split": "({t}[2,9] x) => ({t}[2,4] y, {t}[2,5] z) <int64[2] s = {{4, 5}}> {{ y, z = Split<axis = 1>(x, s) }}",
    "Tile": "({t}[2,9] x) => ({t}[2,18] y) <int64[2] n = {{1, 2}}> {{ y = Tile(x, n) }}",
    "Slice": "({t}[2,9] x) => ({t}[1,9] y) <int64[1] a = {{0}}, int64[1] b = {{1}}> {{ y = Slice(x, a, b, a) }}",
    "Pad": "({t}[9] x) => ({t}[12] y) <int64[2] p = {{1, 2}}> {{ y = Pad(x, p) }}",
    "Range": (
        "({t}[3] x) => ({t}[3] z) <{t} a = {{0}}, {t} b = {{3}}, {t} c = {{1}}> {{ y = Range(a, b, c) z = Add(x, y) }}"
    ),
    "Constant": "({t}[1] x) => ({t}[2] z) {{ y = Constant<value = {t}[1] {{1}}>() z = Concat<axis = 0>(x, y) }}",
    "ConstantOfShape": (
        "(float[2,9] x) => (float[2,9] z) <{t}[2] s = {{2, 9}}> {{ y = ConstantOfShape(s) z = Add(x, y) }}"
    ),
}
TEXT = {operator: text for operators, text in TEXTS.items() for operator in operators.split()}


def minimal(operator: str, dtype: str) -> onnx.ModelProto:
    """Return a graph of the operator whose first input has this dtype."""
    return model(TEXT[operator].format(o=operator, t=NAMES.get(dtype, dtype)), OPSET)


def in_onnx(operator: str) -> frozenset[str]:
    """Return the dtypes of `ANY` that ONNX allows for the first input, or for the output if it has none."""
    schema = defs.get_schema(operator, OPSET, "")
    types = schema.inputs[0].types if schema.inputs else schema.outputs[0].types
    return frozenset(x for x in ANY if f"tensor({NAMES.get(x, x)})" in types)


def together(models: dict[str, onnx.ModelProto]) -> onnx.ModelProto:
    """Return one graph of several independent ones, whose names are prefixed."""
    merged = onnx.ModelProto()
    for name, one in models.items():
        part = compose.add_prefix(one, f"{name}.")
        if not merged.graph.node:
            merged.CopyFrom(part)
            continue
        for field in ("node", "input", "output", "initializer"):
            getattr(merged.graph, field).extend(getattr(part.graph, field))
    return merged
