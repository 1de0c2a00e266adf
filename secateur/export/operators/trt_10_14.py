# SPDX-License-Identifier: Apache-2.0
"""Operators that TensorRT 10.14 supports beyond 10.13: Attention, an operator of opset 23."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_13
from secateur.export.operators.rules import BOOL, FLOATS, attribute, no_attribute, no_input, outputs, rank, rows_for

CHANGES = "NVIDIA/TensorRT CHANGELOG at 10.14; the restrictions as in onnx-tensorrt docs/operators.md at 10.15"
OUTSIDE = "join past and new rows before the node"

TABLE = trt_10_13.TABLE.then(
    Version(10, 14),
    23,
    rows_for(
        "Attention",
        FLOATS,
        CHANGES,
        others={3: FLOATS | BOOL},
        checks=(
            rank(4, 0, 1, 2, 3),
            no_input(OUTSIDE, past_key=4, past_value=5, nonpad_kv_seqlen=6),
            outputs(1, OUTSIDE),
            attribute("softcap", 0.0, "decompose attention into simpler operators"),
            attribute("qk_matmul_output_mode", 0, "leave it out"),
            no_attribute("softmax_precision", "leave it out"),
        ),
    ),
)
