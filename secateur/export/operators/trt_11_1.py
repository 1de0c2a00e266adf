# SPDX-License-Identifier: Apache-2.0
"""TensorRT 11.1, the newest version with known documentation: the same ONNX operators as 11.0."""

from __future__ import annotations

from secateur.engines.version import Version
from secateur.export.operators import trt_11_0

TABLE = trt_11_0.TABLE.then(Version(11, 1), 24, {})
