# SPDX-License-Identifier: Apache-2.0
"""Operators supported by TensorRT 10.3 (JetPack 6) that exported graphs may need.

Operators without a row are refused. If the documentation of 10.3 does not settle a row, it is taken from those of 9.2
and 10.15 where they agree.
"""

from __future__ import annotations

from onnx import TensorProto

from secateur.engines.version import Version
from secateur.export.graph_facts import Node
from secateur.export.operators.rules import (
    ANY,
    BOOL,
    FLOATS,
    INTEGERS,
    NUMBERS,
    Refusal,
    Row,
    Table,
    at_most,
    attribute,
    constant,
    outputs,
    refused,
    rows_for,
)

TOP = 3840  # "up to" in NvInfer.h, "less than" in operators.md
DOCS = "onnx-tensorrt docs/operators.md at 10.3"
BOTH = "onnx-tensorrt docs/operators.md at 9.2 and 10.15, which agree"
SPLIT = "select in several rounds (secateur.selection.topk.top)"


def squeeze(node: Node) -> Refusal | None:
    """Check that a Squeeze without axes, which removes every dimension of 1, has an input of static shape."""
    shape = node.shape(0)
    if node.input(1) or (shape is not None and None not in shape):
        return None
    return Refusal("it has no axes and its input no static shape", "set the axes to a constant")


def einsum(node: Node) -> Refusal | None:
    """Check that an Einsum has no "...", no index twice in one operand, and no broadcast dimension."""
    terms = str(node.attribute("equation", "")).replace(" ", "").partition("->")[0].split(",")
    mend = "write it with MatMul, Mul and ReduceSum"
    if any("." in term for term in terms):
        return Refusal("an ellipsis is not supported", mend)
    if any(len(set(term)) < len(term) for term in terms):
        return Refusal("a diagonal is not supported", mend)
    sizes: dict[str, int] = {}
    for i, term in enumerate(terms):
        for index, size in zip(term, node.shape(i) or (), strict=False):
            if size is not None and sizes.setdefault(index, size) != size:
                return Refusal(f"index '{index}' is broadcast, which is not supported", mend)
    return None


def convolution(node: Node) -> Refusal | None:
    shape = node.shape(0)
    if shape is None or len(shape) in (4, 5):
        return None
    return Refusal(f"a convolution over {len(shape) - 2} dimensions is not supported", "make it one over 2 or 3")


def filled(node: Node) -> Refusal | None:
    value = node.attribute("value")
    if value is None or value.data_type == TensorProto.FLOAT:
        return None
    return Refusal("it fills with another dtype than float32", "cast its output")


ROWS: dict[str, Row] = {
    # elementwise
    **rows_for("Abs Add Div Max Mean Min Mod Mul Neg Sign Sub Sum", NUMBERS, BOTH),
    **rows_for("Ceil Clip Cos Elu Erf Exp Floor HardSigmoid LeakyRelu Log Pow Reciprocal Round", FLOATS, BOTH),
    **rows_for("Sigmoid Sin Softplus Sqrt Tan Tanh", FLOATS, BOTH),
    **rows_for("Relu", NUMBERS, BOTH),
    **rows_for("Gelu", FLOATS, DOCS),
    **rows_for("Equal Greater GreaterOrEqual Less LessOrEqual", NUMBERS, BOTH),
    **rows_for("And Not Or Xor", BOOL, BOTH),
    **rows_for("Where", ANY, BOTH, others={0: BOOL}),
    **rows_for("Cast CastLike", ANY | {"uint8"}, DOCS),
    # matrices and norms
    **rows_for("Gemm LogSoftmax MatMul Softmax", FLOATS, BOTH),
    **rows_for("Conv", FLOATS, BOTH, checks=(convolution,)),
    **rows_for("LayerNormalization", FLOATS, DOCS, checks=(outputs(1, "use its first output only"),)),
    **rows_for("Einsum", FLOATS, DOCS, checks=(einsum,)),
    # reductions and sorting
    **rows_for(
        "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare",
        NUMBERS,
        BOTH,
        checks=(constant(1, "axes"),),
    ),
    **rows_for("ArgMax ArgMin", NUMBERS, BOTH),
    **rows_for("CumSum", FLOATS, DOCS, others={1: INTEGERS}, checks=(constant(1, "axis"),)),
    **rows_for(
        "TopK",
        NUMBERS,
        f"{DOCS}; NvInfer.h at 10.3 for the largest K",
        checks=(
            attribute("sorted", 1, "set sorted to 1"),
            constant(1, "K"),
            at_most(1, "K", TOP, SPLIT),
        ),
    ),
    # indexing and shapes
    **rows_for("Gather GatherElements GatherND", ANY, DOCS),
    **rows_for("Scatter", NUMBERS, DOCS),
    **rows_for("ScatterElements", NUMBERS, f"{DOCS}, through a plugin"),
    **rows_for(
        "ScatterND", NUMBERS, DOCS, checks=(attribute("reduction", "none", "add with a MatMul against a 0/1 matrix"),)
    ),
    **rows_for("Concat Flatten Identity Shape Size Transpose Trilu", ANY, BOTH),
    **rows_for("Squeeze", ANY, DOCS, checks=(constant(1, "axes"), squeeze)),
    **rows_for("Unsqueeze", ANY, DOCS, checks=(constant(1, "axes"),)),
    **rows_for("Expand Reshape Split Tile", ANY, BOTH, sizes=(1,)),
    **rows_for("Slice", ANY, f"{BOTH}; docs/Changelog.md at 10.3 for axes", sizes=(1, 2, 3, 4)),
    **rows_for("Pad", NUMBERS, BOTH, sizes=(1, 3)),
    **rows_for("Range", INTEGERS | {"float32"}, f"{BOTH}; onnxOpImporters.cpp for the dtypes", sizes=(0, 1, 2)),
    **rows_for("Constant", ANY, BOTH),
    **rows_for("ConstantOfShape", INTEGERS, "onnx-tensorrt docs/operators.md at 9.2", sizes=(0,), checks=(filled,)),
    # not supported, or not allowed in a graph of fixed sizes
    **refused("NonZero Compress Unique", "the shape of its output depends on the data", "select a fixed number", DOCS),
    **refused("Loop If Scan", "its control flow prevents capture as one CUDA graph", "unroll it", DOCS),
    **refused(
        "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap "
        "SplitToSequence ConcatFromSequence",
        "sequences are not supported",
        "use tensors, with Split and Concat",
        DOCS,
    ),
    **refused(
        "Optional OptionalGetElement OptionalHasElement",
        "optional values are not supported",
        "leave them out of the graph",
        DOCS,
    ),
    **refused(
        "Attention RMSNormalization RotaryEmbedding TensorScatter Swish",
        "this version does not have it",
        "export with --target tensorrt, which decomposes it into simpler operators",
        DOCS,
    ),
}

TABLE = Table(Version(10, 3), 20, ROWS)
