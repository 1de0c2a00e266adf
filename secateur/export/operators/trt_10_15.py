# SPDX-License-Identifier: Apache-2.0
"""What TensorRT 10.15 and 10.16 (JetPack 7.2) take beyond 10.14."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_14
from secateur.export.operators.rows import FLOATS, INTEGERS, NUMBERS, alike, attribute, rank, same_dtype

DOCS = "onnx-tensorrt docs/operators.md at 10.15"
IMPORTER = "onnx-tensorrt onnxOpImporters.cpp, newer than 10.15"

TABLE = trt_10_14.TABLE.then(
    Version(10, 15),
    24,
    {
        **alike(
            "RMSNormalization",
            FLOATS,
            f"{DOCS}; {IMPORTER}: the output has the dtype of the input, in ONNX that of the scale",
            checks=(same_dtype(0, 1, "cast the input to the dtype of the scale"),),
        ),
        **alike("RotaryEmbedding", FLOATS, DOCS, others={3: frozenset({"int64"})}),
        **alike(
            "TensorScatter",
            FLOATS | {"int32"},
            DOCS,
            others={2: INTEGERS},
            checks=(rank(4, 0, 1), attribute("axis", -2, "scatter along the rows")),
        ),
        **alike("Pow", NUMBERS, DOCS),
        **alike("ConstantOfShape", INTEGERS, DOCS, sizes=(0,)),
    },
)
