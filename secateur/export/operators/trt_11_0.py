# SPDX-License-Identifier: Apache-2.0
"""What TensorRT 11.0 takes beyond 10.16."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_10_15
from secateur.export.operators.rules import FLOATS, alike

DOCS = "onnx-tensorrt docs/operators.md at 11.0"

TABLE = trt_10_15.TABLE.then(Version(11, 0), 24, alike("Swish", FLOATS, DOCS))
