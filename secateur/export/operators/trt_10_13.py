# SPDX-License-Identifier: Apache-2.0
"""Operators that TensorRT 10.13 (JetPack 7.0 and 7.1) supports beyond 10.3.

Its largest opset is not documented; 20 is safe. Axes may be computed since 10.7, Einsum is complete since 10.12.
"""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_3
from secateur.export.operators.rules import ANY, FLOATS, INTEGERS, folded, rows_for

DOCS = "onnx-tensorrt docs/operators.md at 10.13"

TABLE = trt_10_3.TABLE.then(
    Version(10, 13),
    20,
    {
        **rows_for("Squeeze", ANY, DOCS, checks=(folded(1, "axes"), trt_10_3.squeeze)),
        **rows_for("Unsqueeze", ANY, DOCS, checks=(folded(1, "axes"),)),
        **rows_for("CumSum", FLOATS, DOCS, others={1: INTEGERS}, checks=(folded(1, "axis"),)),
        **rows_for("Einsum", FLOATS, DOCS),
    },
)
