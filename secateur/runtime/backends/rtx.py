# SPDX-License-Identifier: Apache-2.0
"""TensorRT engines as in backend trt, built on any machine by TensorRT for RTX, for RTX cards, A100 and DGX Spark."""

from __future__ import annotations

from secateur.engines.library import TensorRTForRTX
from secateur.runtime.backends.trt import Backend as TensorRTBackend


class Backend(TensorRTBackend):
    """Runs plans that `secateur build --engine rtx` made on any machine for this compute capability.

    The first run compiles kernels for this GPU; `close` keeps them in a file beside the plans.
    """

    library = TensorRTForRTX
