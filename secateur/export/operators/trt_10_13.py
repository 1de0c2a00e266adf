# SPDX-License-Identifier: Apache-2.0
"""What TensorRT 10.13 (JetPack 7.0 and 7.1) takes beyond 10.3.

Its largest opset is published nowhere; 20 is safe. Axes may be resolved since 10.7, Einsum is whole since 10.12.
"""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_3
from secateur.export.operators.rules import ANY, FLOATS, INTEGERS, alike, folded

DOCS = "onnx-tensorrt docs/operators.md at 10.13"

TABLE = trt_10_3.TABLE.then(
    Version(10, 13),
    20,
    {
        **alike("Squeeze", ANY, DOCS, checks=(folded(1, "axes"), trt_10_3.squeeze)),
        **alike("Unsqueeze", ANY, DOCS, checks=(folded(1, "axes"),)),
        **alike("CumSum", FLOATS, DOCS, others={1: INTEGERS}, checks=(folded(1, "axis"),)),
        **alike("Einsum", FLOATS, DOCS),
    },
)
