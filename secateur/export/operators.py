# SPDX-License-Identifier: Apache-2.0
"""ONNX operators supported by TensorRT: a table per version, defined by its differences from the previous table.

Only operators that exported graphs may need have a row; all others are refused. If the documentation of 10.3 does not
settle a row, it is taken from those of 9.2 and 10.15 where they agree.
"""

from __future__ import annotations

from onnx import TensorProto

from secateur.engines.version import Version
from secateur.errors import Unparsable
from secateur.export.graph_facts import Node
from secateur.export.operator_rules import (
    ANY,
    BOOL,
    FLOATS,
    INTEGERS,
    NUMBERS,
    Refusal,
    Table,
    at_most,
    attribute,
    constant,
    folded,
    no_input,
    outputs,
    refused,
    rows_for,
)

DOCS = "onnx-tensorrt docs/operators.md"
AT_10_3, AT_10_13, AT_10_15 = (f"{DOCS} at {version}" for version in ("10.3", "10.13", "10.15"))
BOTH = f"{DOCS} at 9.2 and 10.15, which agree"
RTX = f"{BOTH}; TensorRT for RTX 1.7 refuses int32, which they list"
TOP = 3840  # "up to" in NvInfer.h, "less than" in operators.md
SPLIT = "select in several rounds (secateur.selection.topk.top)"
BLOCKS = (64, 128)


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


def filled(node: Node) -> Refusal | None:
    value = node.attribute("value")
    if value is None or value.data_type == TensorProto.FLOAT:
        return None
    return Refusal("it fills with another dtype than float32", "cast its output")


def blocks(node: Node) -> Refusal | None:
    """Check that weight-only quantization is in blocks of a supported size."""
    size = node.attribute("block_size", 0)
    return None if size in BLOCKS else Refusal(f"block_size is {size}, not 64 or 128", "export with --block-size 128")


ROWS = {
    # elementwise
    **rows_for("Abs Add Div Max Mean Min Mod Mul Neg Sign Sub Sum", NUMBERS, BOTH),
    **rows_for("Ceil Clip Cos Elu Erf Exp Floor HardSigmoid LeakyRelu Log Pow Reciprocal Round", FLOATS, BOTH),
    **rows_for("Sigmoid Sin Softplus Sqrt Tan Tanh", FLOATS, BOTH),
    **rows_for("Relu", FLOATS, RTX),
    **rows_for("Gelu", FLOATS, AT_10_3),
    **rows_for("Equal Greater GreaterOrEqual Less LessOrEqual", NUMBERS, BOTH),
    **rows_for("And Not Or Xor", BOOL, BOTH),
    **rows_for("Where", ANY, BOTH, others={0: BOOL}),
    **rows_for("Cast CastLike", ANY | {"uint8"}, AT_10_3),
    # matrices and norms
    **rows_for("Conv Gemm LogSoftmax MatMul Softmax", FLOATS, BOTH),
    **rows_for("LayerNormalization", FLOATS, AT_10_3, checks=(outputs(1, "use its first output only"),)),
    **rows_for("Einsum", FLOATS, AT_10_3, checks=(einsum,)),
    # reductions and sorting
    **rows_for(
        "ReduceL1 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare",
        NUMBERS,
        BOTH,
        checks=(constant(1, "axes"),),
    ),
    **rows_for("ReduceL2 ReduceLogSumExp", FLOATS, RTX, others={1: INTEGERS}, checks=(constant(1, "axes"),)),
    **rows_for("ArgMax ArgMin", NUMBERS, BOTH),
    **rows_for("CumSum", FLOATS, AT_10_3, others={1: INTEGERS}, checks=(constant(1, "axis"),)),
    **rows_for(
        "TopK",
        NUMBERS,
        f"{AT_10_3}; NvInfer.h at 10.3 for the largest K",
        checks=(
            attribute("sorted", 1, "set sorted to 1"),
            constant(1, "K"),
            at_most(1, "K", TOP, SPLIT),
        ),
    ),
    # indexing and shapes
    **rows_for("Gather GatherElements GatherND", ANY, AT_10_3),
    **rows_for("ScatterElements", NUMBERS, f"{AT_10_3}, through a plugin"),
    **rows_for(
        "ScatterND",
        NUMBERS,
        AT_10_3,
        checks=(attribute("reduction", "none", "add with a MatMul against a 0/1 matrix"),),
    ),
    **rows_for("Concat Flatten Identity Shape Size Transpose Trilu", ANY, BOTH),
    **rows_for("Squeeze", ANY, AT_10_3, checks=(constant(1, "axes"), squeeze)),
    **rows_for("Unsqueeze", ANY, AT_10_3, checks=(constant(1, "axes"),)),
    **rows_for("Expand Reshape Split Tile", ANY, BOTH, sizes=(1,)),
    **rows_for("Slice", ANY, f"{BOTH}; docs/Changelog.md at 10.3 for axes", sizes=(1, 2, 3, 4)),
    **rows_for("Pad", NUMBERS, BOTH, sizes=(1, 3)),
    **rows_for("Range", INTEGERS | {"float32"}, f"{BOTH}; onnxOpImporters.cpp for the dtypes", sizes=(0, 1, 2)),
    **rows_for("Constant", ANY, BOTH),
    **rows_for("ConstantOfShape", INTEGERS, "onnx-tensorrt docs/operators.md at 9.2", sizes=(0,), checks=(filled,)),
    # not supported, or not allowed in a graph of fixed sizes
    **refused(
        "NonZero Compress Unique", "the shape of its output depends on the data", "select a fixed number", AT_10_3
    ),
    **refused("Loop If Scan", "its control flow prevents capture as one CUDA graph", "unroll it", AT_10_3),
    **refused(
        "SequenceAt SequenceConstruct SequenceEmpty SequenceErase SequenceInsert SequenceLength SequenceMap "
        "SplitToSequence ConcatFromSequence",
        "sequences are not supported",
        "use tensors, with Split and Concat",
        AT_10_3,
    ),
    **refused(
        "Optional OptionalGetElement OptionalHasElement",
        "optional values are not supported",
        "leave them out of the graph",
        AT_10_3,
    ),
    **refused(
        "Attention RMSNormalization RotaryEmbedding TensorScatter Swish",
        "not every version of TensorRT has it, or has all of it",
        "export with --target tensorrt, which decomposes it into simpler operators",
        AT_10_3,
    ),
}

TRT_10_3 = Table(Version(10, 3), 20, ROWS)  # JetPack 6

TRT_10_13 = TRT_10_3.then(  # JetPack 7.0 and 7.1
    Version(10, 13),
    22,  # documented at 10.6
    {
        # axes may be computed since 10.7, Einsum is complete since 10.12
        **rows_for("Squeeze", ANY, AT_10_13, checks=(folded(1, "axes"), squeeze)),
        **rows_for("Unsqueeze", ANY, AT_10_13, checks=(folded(1, "axes"),)),
        **rows_for("CumSum", FLOATS, AT_10_13, others={1: INTEGERS}, checks=(folded(1, "axis"),)),
        **rows_for("Einsum", FLOATS, AT_10_13),
        **rows_for("ConstantOfShape", INTEGERS, f"{DOCS} at 10.6", sizes=(0,)),
    },
)

TRT_10_15 = TRT_10_13.then(  # and all later ones with known documentation; 10.16 is JetPack 7.2
    Version(10, 15),
    24,
    {
        **rows_for(
            "DequantizeLinear",
            frozenset({"int4"}),
            f"{AT_10_15}: INT4, zero point 0; NvInfer.h: blocks; 'Working with Quantized Types': int8 not alone",
            others={1: FLOATS},
            checks=(no_input("use symmetric integers", x_zero_point=2), blocks),
        ),
        **rows_for("Pow", NUMBERS, AT_10_15),
    },
)

TABLES = (TRT_10_3, TRT_10_13, TRT_10_15)
OLDEST, NEWEST = TABLES[0].version, Version(11, 1)


def table(version: Version) -> Table:
    """Return the newest table that is not newer than `version`.

    Raises:
        Unparsable: the version is older than the oldest table.
    """
    if version < OLDEST:
        raise Unparsable(f"TensorRT {version} is too old; graphs are made for {OLDEST} and newer")
    return [each for each in TABLES if each.version <= version][-1]


def caution(version: Version) -> str:
    """Return a warning for a version that is newer than the documentation of the tables; "" for others."""
    if version[:2] <= NEWEST[:2]:
        return ""
    return f"TensorRT {version} is newer than the tables; it was checked as {NEWEST}"
