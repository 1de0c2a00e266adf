# SPDX-License-Identifier: Apache-2.0
"""Export targets. A target sets the opset, the default dtype and the form of attention of the graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from secateur.bundle.manifest import DEQUANTIZED, Quantization
from secateur.engines.version import TARGET as TENSORRT
from secateur.errors import InputError, UnknownName

BAKED, SHARED = "baked", "shared"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """Opset and dtype of the graphs.

    decomposed  attention is MatMul and Softmax
    weights     "baked": constants of the graphs; "shared": inputs, so that all plans use one copy on the device
    """

    name: str
    opset: int
    dtype: str
    decomposed: bool = False
    weights: str = BAKED

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    def storing(self, quantization: Quantization | None) -> Target:
        """Return the target at the opset that these weights need: DequantizeLinear has blocks since opset 21."""
        blocks = quantization is not None and quantization.operator == DEQUANTIZED
        return replace(self, opset=max(self.opset, 21)) if blocks else self


TARGETS = {
    "cpu": Target("cpu", 23, "fp32"),
    "cuda": Target("cuda", 23, "fp16"),
    TENSORRT: Target(TENSORRT, 20, "fp16", decomposed=True, weights=SHARED),
}


def target(name: str, dtype: str | None = None, weights: str | None = None) -> Target:
    """Return the target called `name`, with `dtype` and `weights` instead of its defaults if given.

    Raises:
        UnknownName, InputError: no such target, dtype or kind of weights, or one that the target cannot run.
    """
    if name not in TARGETS:
        raise UnknownName("target", name, TARGETS)
    found = TARGETS[name]
    if weights is not None:
        if weights not in (BAKED, SHARED):
            raise InputError(f"weights '{weights}' are not known; use {SHARED} or {BAKED}")
        if weights == SHARED and found.weights != SHARED:
            raise InputError(f"--weights {SHARED} is for TensorRT; target '{name}' maps its weights: leave it out")
        found = replace(found, weights=weights)
    if dtype is None:
        return found
    if dtype not in DTYPES:
        raise InputError(f"dtype '{dtype}' is not known; use one of {', '.join(DTYPES)}")
    if (name, dtype) == ("cpu", "bf16"):
        raise InputError("ONNX Runtime's CPU kernels have no bf16; use --dtype fp16 or fp32, or --target cuda")
    return replace(found, dtype=dtype)
