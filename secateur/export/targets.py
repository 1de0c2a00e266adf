# SPDX-License-Identifier: Apache-2.0
"""Where a bundle runs decides its opset, dtype and the form of attention. Precision lives in the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.errors import InputError, UnknownName

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """opset of the graphs, default dtype, and whether attention is spelled out as MatMul and Softmax."""

    name: str
    opset: int
    dtype: str
    decomposed: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]


TARGETS = {
    "cpu": Target("cpu", 23, "fp32"),
    "cuda": Target("cuda", 23, "fp16"),
    "tensorrt": Target("tensorrt", 20, "fp16", decomposed=True),
    "tensorrt-10.15": Target("tensorrt-10.15", 23, "fp16"),
}


def target(name: str, dtype: str | None = None) -> Target:
    """The target called `name`, with its own dtype unless `dtype` says otherwise.

    Raises:
        UnknownName, InputError: no such target or dtype, or a dtype that the target cannot run.
    """
    if name not in TARGETS:
        raise UnknownName("target", name, TARGETS)
    found = TARGETS[name]
    if dtype is None:
        return found
    if dtype not in DTYPES:
        raise InputError(f"dtype '{dtype}' is not known; use one of {', '.join(DTYPES)}")
    if (name, dtype) == ("cpu", "bf16"):
        raise InputError("ONNX Runtime's CPU kernels have no bf16; use --dtype fp16 or fp32, or --target cuda")
    return Target(found.name, found.opset, dtype, found.decomposed)
