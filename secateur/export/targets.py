# SPDX-License-Identifier: Apache-2.0
"""Export targets. A target sets the opset, the default dtype and the form of attention of the graphs."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from secateur.errors import InputError, UnknownName

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Target:
    """Opset and dtype of the graphs, and whether attention is decomposed into MatMul and Softmax."""

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
    """Return the target called `name`, with `dtype` instead of its default if given.

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
