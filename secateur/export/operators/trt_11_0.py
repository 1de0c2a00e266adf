# SPDX-License-Identifier: Apache-2.0
"""Operators that TensorRT 11.0 supports beyond 10.16."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_15
from secateur.export.operators.rules import FLOATS, rows_for

DOCS = "onnx-tensorrt docs/operators.md at 11.0"

TABLE = trt_10_15.TABLE.then(Version(11, 0), 24, rows_for("Swish", FLOATS, DOCS))
