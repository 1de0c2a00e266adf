# SPDX-License-Identifier: Apache-2.0
"""What TensorRT 10.14 takes beyond 10.13: attention as one operator, which is of opset 23."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_13
from secateur.export.operators.rules import BOOL, FLOATS, alike, attribute, no_input, outputs, rank, without

CHANGES = "NVIDIA/TensorRT CHANGELOG at 10.14; the restrictions as in onnx-tensorrt docs/operators.md at 10.15"
OUTSIDE = "join past and new rows before the node"

TABLE = trt_10_13.TABLE.then(
    Version(10, 14),
    23,
    alike(
        "Attention",
        FLOATS,
        CHANGES,
        others={3: FLOATS | BOOL},
        checks=(
            rank(4, 0, 1, 2, 3),
            no_input(OUTSIDE, past_key=4, past_value=5, nonpad_kv_seqlen=6),
            outputs(1, OUTSIDE),
            attribute("softcap", 0.0, "write attention out in simpler operators"),
            attribute("qk_matmul_output_mode", 0, "leave it out"),
            without("softmax_precision", "leave it out"),
        ),
    ),
)
