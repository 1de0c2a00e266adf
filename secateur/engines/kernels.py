# SPDX-License-Identifier: Apache-2.0
"""The kernels of a finished engine, read from the log of TensorRT's builder.

With detailed profiling verbosity, the builder logs one line for each step of the engine at severity VERBOSE:

    Name: _gemm_mha_v2_myl1_10, LayerType: kgen, Inputs: [ { Name: q, Dimensions: [16,-1,128], Strides: [...],
    StrideOrder: [...], Datatype: Half, Format: ... }, ... ], Constants: [ ... ], Outputs: [ ... ], ...

A size that varies within the profile is logged as -1. `_myl1_` is the number of a compiled part of the network: every
profile has parts of its own, and tensors of all profiles but the first are marked with " [profile 1]". Measured with
TensorRT for RTX 1.7.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass

BITS = {
    "Int64": 64,
    **dict.fromkeys(("Float", "Int32"), 32),
    **dict.fromkeys(("Half", "BFloat16"), 16),
    **dict.fromkeys(("Bool", "Int8", "UInt8", "FP8", "E8M0"), 8),
    **dict.fromkeys(("Int4", "FP4"), 4),
}
"""Size of a value by the log's name of its type."""
HOST = ("signal", "wait", "shape_call", "ShapeHostToDevice")
"""Steps that are not kernels: synchronization of streams, and sizes that the host computes."""
LEAST_VALUES = 4096
"""Values of a weight whose copy is worth a report."""

STEP = re.compile(r"^Name: (.*?), LayerType: (\w+),(.*)$", re.MULTILINE)
TENSOR = re.compile(r"Name: ([^{}]*?), (?:Location: \w+, )?Dimensions: \[([-\d,]*)\].*?Datatype: (\w+)")
BOUND = re.compile(r"^ Name: (.*), IOMode: (\w+), DataType: (\w+), Dimensions: \[([-\d,]*)\]", re.MULTILINE)
PROFILE = re.compile(r" \[profile (\d+)\]")
PART = re.compile(r"_myl(\d+)_\d+$")
GENERATED = ("__myl_", "_gem")
"""Beginnings of the names of generated kernels; others are named after nodes of the graph."""


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    name    as in the log, such as "_gemm_mha_v2_myl1_10"
    kind    "gemm" (library product), "kgen" (generated), "runtime_fusion", "cast" or another LayerType of the log
    bytes   sum of the sizes of its inputs, constants and outputs, of a table only the rows that it gathers; None if
            one of them varies within the profile
    matrix  whether it reads a weight of at least LEAST_VALUES values
    copy    whether it reads only weights (one of at least LEAST_VALUES values), or writes one out multiplied by the
            rows, before they are summed: work of a weight's size in every step
    """

    name: str
    kind: str
    bytes: int | None
    matrix: bool
    copy: bool

    @property
    def label(self) -> str:
        """Name that kernels of the same kind share, such as "_gemv_mha_v1" or "FcAdd"; of a library product, "gemm"."""
        return PART.sub("", self.name).removeprefix("__myl_") if self.name.startswith(GENERATED) else self.kind

    @property
    def attention(self) -> bool:
        """Whether it is fused attention: both products and the softmax."""
        return "_gemm_mha" in self.name or "_gemv_mha" in self.name

    @property
    def product(self) -> bool:
        """Whether it is a matrix product with what is fused to it; with one row it is a product and a sum."""
        return self.kind == "gemm" or "Fc" in self.name or (self.matrix and "MulSum" in self.name)


@dataclass(frozen=True)
class _Tensor:
    name: str
    values: int | None
    bits: int

    @property
    def bytes(self) -> int | None:
        return None if self.values is None else math.ceil(self.values * self.bits / 8)


def kernels(log: str, profiles: int, weights: Collection[str] = ()) -> tuple[tuple[Kernel, ...], ...]:
    """Read the kernels of each profile from the builder's log, in the order of execution.

    log       the messages that contain "LayerType"
    profiles  number of profiles
    weights   names of the network's inputs that are weights
    """
    steps = STEP.findall(log)
    parts: dict[str, int] = defaultdict(int)
    for name, _, rest in steps:
        part = PART.search(name)
        if part and (marks := PROFILE.findall(name + rest)):
            parts[part[1]] = max(map(int, marks))
    made: list[list[Kernel]] = [[] for _ in range(profiles)]
    fixed: list[set[str]] = [set(weights) for _ in range(profiles)]
    for name, kind, rest in steps:
        if kind in HOST:
            continue
        part = PART.search(name)
        profile = parts[part[1]] if part else max(map(int, PROFILE.findall(name + rest)), default=0)
        made[profile].append(_kernel(PROFILE.sub("", name), kind, PROFILE.sub("", rest), fixed[profile], weights))
    return tuple(map(tuple, made))


def _kernel(name: str, kind: str, rest: str, fixed: set[str], weights: Collection[str]) -> Kernel:
    """Read one kernel.

    fixed  names of tensors that are the same in every step; the outputs of a copy are added
    """
    before, _, outputs = rest.partition("Outputs: [")
    inputs, _, constants = before.partition("Constants: [")
    read, constant, written = (_tensors(text) for text in (inputs, constants, outputs))
    always = [tensor for tensor in read if tensor.name in fixed] + constant
    matrix = any(_large(tensor) for tensor in always)
    copy = matrix and len(always) == len(read) + len(constant)
    if copy:
        fixed.update(tensor.name for tensor in written)
    multiplied = {t.values for t in read if t.name in weights and _large(t)} & {t.values for t in written}
    products = kind == "gemm" or "Fc" in name
    sizes = [tensor.bytes for tensor in (*read, *constant, *written)]
    if "Gath" in name:  # reads rows of a table, not all of it
        rows = sum(tensor.bytes or 0 for tensor in written)
        others = [tensor.bytes for tensor in (*read, *written) if tensor not in always]
        sizes = [*others, *(min(tensor.bytes or 0, rows) for tensor in always)]
    known = [size for size in sizes if size is not None]
    total = sum(known) if len(known) == len(sizes) else None
    return Kernel(name, kind, total, matrix, copy or (bool(multiplied) and not products))


def _tensors(text: str) -> list[_Tensor]:
    """Read the tensors of a list of inputs, constants or outputs."""
    return [_tensor(*found) for found in TENSOR.findall(text)]


def _tensor(name: str, dimensions: str, kind: str) -> _Tensor:
    sizes = [int(size) for size in dimensions.split(",") if size]
    return _Tensor(name, None if -1 in sizes else math.prod(sizes), BITS[kind])


def _large(tensor: _Tensor) -> bool:
    return tensor.values is not None and tensor.values >= LEAST_VALUES


def bound(log: str, mode: str) -> dict[str, int | None]:
    """Read the bytes of each input or output of the network by name; None if its size varies within the profiles.

    mode  "Input" or "Output"
    """
    found = BOUND.findall(log)
    return {name: _tensor(name, dimensions, kind).bytes for name, which, kind, dimensions in found if which == mode}


def moved(engine: Iterable[Kernel]) -> int | None:
    """Return the bytes that the kernels read and write together; None if a size varies within the profile."""
    total = 0
    for kernel in engine:
        if kernel.bytes is None:
            return None
        total += kernel.bytes
    return total
