# SPDX-License-Identifier: Apache-2.0
"""Operators that TensorRT 10.3 takes (JetPack 6), as far as an exported graph may need them.

What is not here is refused. Where the list of 10.3 itself does not settle a row, it holds because the lists before
and after it, of 9.2 and 10.15, agree.
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
    alike,
    at_most,
    attribute,
    constant,
    outputs,
    refused,
)

TOP = 3840  # "up to" in NvInfer.h, "less than" in operators.md
DOCS = "onnx-tensorrt docs/operators.md at 10.3"
BOTH = "onnx-tensorrt docs/operators.md at 9.2 and 10.15, which agree"
SPLIT = "choose among so many in rounds (secateur.selection.topk.top)"


def squeeze(node: Node) -> Refusal | None:
    """Without axes every dimension of 1 goes, which a shape that is not known does not tell."""
    shape = node.shape(0)
    if node.input(1) or (shape is not None and None not in shape):
        return None
    return Refusal("it has no axes and its input no static shape", "give the axes as a constant")


def einsum(node: Node) -> Refusal | None:
    """Neither "..." nor an index twice in one operand, nor one dimension broadcast."""
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
    return Refusal("it fills with another dtype than float32", "cast what it gives")


ROWS: dict[str, Row] = {
    # one number after the other
    **alike("Abs Add Div Max Mean Min Mod Mul Neg Sign Sub Sum", NUMBERS, BOTH),
    **alike("Ceil Clip Cos Elu Erf Exp Floor HardSigmoid LeakyRelu Log Pow Reciprocal Round", FLOATS, BOTH),
    **alike("Sigmoid Sin Softplus Sqrt Tan Tanh", FLOATS, BOTH),
    **alike("Relu", NUMBERS, BOTH),
    **alike("Gelu", FLOATS, DOCS),
    **alike("Equal Greater GreaterOrEqual Less LessOrEqual", NUMBERS, BOTH),
    **alike("And Not Or Xor", BOOL, BOTH),
    **alike("Where", ANY, BOTH, others={0: BOOL}),
    **alike("Cast CastLike", ANY | {"uint8"}, DOCS),
    # matrices and norms
    **alike("Gemm LogSoftmax MatMul Softmax", FLOATS, BOTH),
    **alike("Conv", FLOATS, BOTH, checks=(convolution,)),
    **alike("LayerNormalization", FLOATS, DOCS, checks=(outputs(1, "use its first output only"),)),
    **alike("Einsum", FLOATS, DOCS, checks=(einsum,)),
    # sums, counts and orders
    **alike(
        "ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare",
        NUMBERS,
        BOTH,
        checks=(constant(1, "axes"),),
    ),
    **alike("ArgMax ArgMin", NUMBERS, BOTH),
    **alike("CumSum", FLOATS, DOCS, others={1: INTEGERS}, checks=(constant(1, "axis"),)),
    **alike(
        "TopK",
        NUMBERS,
        f"{DOCS}; NvInfer.h at 10.3 for the largest K",
        checks=(
            attribute("sorted", 1, "ask for sorted values"),
            constant(1, "K"),
            at_most(1, "K", TOP, SPLIT),
        ),
    ),
    # parts, and their places
    **alike("Gather GatherElements GatherND", ANY, DOCS),
    **alike("Scatter", NUMBERS, DOCS),
    **alike("ScatterElements", NUMBERS, f"{DOCS}, through a plugin"),
    **alike(
        "ScatterND", NUMBERS, DOCS, checks=(attribute("reduction", "none", "add with a MatMul against a 0/1 matrix"),)
    ),
    **alike("Concat Flatten Identity Shape Size Transpose Trilu", ANY, BOTH),
    **alike("Squeeze", ANY, DOCS, checks=(constant(1, "axes"), squeeze)),
    **alike("Unsqueeze", ANY, DOCS, checks=(constant(1, "axes"),)),
    **alike("Expand Reshape Split Tile", ANY, BOTH, sizes=(1,)),
    **alike("Slice", ANY, f"{BOTH}; docs/Changelog.md at 10.3 for axes", sizes=(1, 2, 3, 4)),
    **alike("Pad", NUMBERS, BOTH, sizes=(1, 3)),
    **alike("Range", INTEGERS | {"float32"}, f"{BOTH}; onnxOpImporters.cpp for the dtypes", sizes=(0, 1, 2)),
    **alike("Constant", ANY, BOTH),
    **alike("ConstantOfShape", INTEGERS, "onnx-tensorrt docs/operators.md at 9.2", sizes=(0,), checks=(filled,)),
    # what there is none of, or what a graph of fixed sizes must not have
    **refused("NonZero Compress Unique", "the shape of its output depends on the data", "choose a fixed number", DOCS),
    **refused("Loop If Scan", "its control flow keeps a chain from being one CUDA graph", "unroll it", DOCS),
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
        "export with --target tensorrt, which writes it out in simpler operators",
        DOCS,
    ),
}

TABLE = Table(Version(10, 3), 20, ROWS)
