# SPDX-License-Identifier: Apache-2.0
"""Operators that TensorRT 10.15 and 10.16 (JetPack 7.2) support beyond 10.14."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.graph_facts import Node
from secateur.export.operators import trt_10_14
from secateur.export.operators.rules import (
    FLOATS,
    INTEGERS,
    NUMBERS,
    Refusal,
    attribute,
    no_input,
    rank,
    rows_for,
    same_dtype,
)

DOCS = "onnx-tensorrt docs/operators.md at 10.15"
IMPORTER = "onnx-tensorrt onnxOpImporters.cpp, newer than 10.15"
BLOCKS = (64, 128)


def blocks(node: Node) -> Refusal | None:
    """Check that weight-only quantization is in blocks of a supported size."""
    size = node.attribute("block_size", 0)
    return None if size in BLOCKS else Refusal(f"block_size is {size}, not 64 or 128", "export with --block-size 128")


TABLE = trt_10_14.TABLE.then(
    Version(10, 15),
    24,
    {
        **rows_for(
            "RMSNormalization",
            FLOATS,
            f"{DOCS}; {IMPORTER}: the output has the dtype of the input, in ONNX that of the scale",
            checks=(same_dtype(0, 1, "cast the input to the dtype of the scale"),),
        ),
        **rows_for("RotaryEmbedding", FLOATS, DOCS, others={3: frozenset({"int64"})}),
        **rows_for(
            "TensorScatter",
            FLOATS | {"int32"},
            DOCS,
            others={2: INTEGERS},
            checks=(rank(4, 0, 1), attribute("axis", -2, "scatter along the rows")),
        ),
        **rows_for(
            "DequantizeLinear",
            frozenset({"int4"}),
            f"{DOCS}: INT4, zero point 0; NvInfer.h: blocks; 'Working with Quantized Types': int8 not alone",
            others={1: FLOATS},
            checks=(no_input("use symmetric integers", x_zero_point=2), blocks),
        ),
        **rows_for("Pow", NUMBERS, DOCS),
        **rows_for("ConstantOfShape", INTEGERS, DOCS, sizes=(0,)),
    },
)
