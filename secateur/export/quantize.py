# SPDX-License-Identifier: Apache-2.0
"""Quantize and dequantize one weight with ONNX Runtime's quantizers; for all weights of a graph see quantized_graph.py.

A weight is stored as [in, out], as MatMul reads it. Blocks are `block_size` consecutive inputs of one output.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from secateur.bundle.manifest import BITS, DEQUANTIZED, OPERATOR, Quantization
from secateur.engines.version import TARGET as TENSORRT
from secateur.errors import InputError
from secateur.export.targets import Target

Array = NDArray[Any]
BLOCK_SIZE = {OPERATOR: 32, DEQUANTIZED: 128}
TENSORRT_BLOCKS = (64, 128)


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight in the format of its operator; N outputs, b = ceil(in / block size) blocks.

    MatMulNBits       integers [N, b, block size * bits / 8] uint8, the lower half of a byte first; scales [N, b];
                      zero_points [N, ceil(b * bits / 8)] uint8, packed likewise, or None for the middle of the range
    DequantizeLinear  integers [in, N] int4; scales [b, N]; zero_points None for 0
    """

    integers: Array
    scales: Array
    zero_points: Array | None


def quantization(
    name: str,
    target: Target,
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
) -> Quantization:
    """Return the quantization `name` for a target; None selects the target's default.

    Raises:
        InputError: no such quantization, or one that the target cannot run; the message names an alternative.
    """
    if name not in BITS:
        raise InputError(f"quantization '{name}' is not known; use one of {', '.join(BITS)}")
    if target.name != TENSORRT:
        wanted = BLOCK_SIZE[OPERATOR] if block_size is None else block_size
        return Quantization(name, wanted, symmetric is True, OPERATOR, accuracy_level or 0)
    wanted = BLOCK_SIZE[DEQUANTIZED] if block_size is None else block_size
    if name != "int4":
        raise InputError(f"TensorRT supports weight-only quantization as int4, not as {name}; use --quantize int4")
    if symmetric is False:
        raise InputError("TensorRT supports no zero points; leave out --no-symmetric")
    if wanted not in TENSORRT_BLOCKS:
        raise InputError(f"TensorRT supports blocks of {' or '.join(map(str, TENSORRT_BLOCKS))}, not of {wanted}")
    return Quantization(name, wanted, True, DEQUANTIZED, accuracy_level or 0)


def quantize_weights(
    name: str | None,
    target: Target,
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
) -> Quantization | None:
    """Return how the decoder stores its weights; None without a `name`.

    Raises:
        InputError: no such quantization, one that the target cannot run, or details without a name.
    """
    if name is not None:
        return quantization(name, target, block_size, symmetric, accuracy_level)
    details = {"block-size": block_size, "symmetric": symmetric, "accuracy-level": accuracy_level}
    if given := [detail for detail, value in details.items() if value is not None]:
        raise InputError(f"--{given[0]} changes nothing without --quantize; leave it out")
    return None


def quantize(weight: Array, how: Quantization) -> QuantizedWeight:
    """Quantize one weight [in, out] of fp32, fp16 or bf16; the scales have its dtype.

    Raises:
        InputError: a value is inf or NaN; or the operator is DequantizeLinear, which needs whole blocks, and `in` is
            not a multiple of the block size.
    """
    if not np.isfinite(np.asarray(weight, np.float32)).all():
        raise InputError("a weight contains inf or NaN and cannot be quantized; train or download the model again")
    return _for_operator(weight, how) if how.operator == OPERATOR else _for_dequantize(weight, how)


def check_width(inputs: int, how: Quantization) -> None:
    """Check that a weight with so many inputs can be stored: DequantizeLinear needs whole blocks.

    Raises:
        InputError: the blocks do not divide it.
    """
    if how.operator == DEQUANTIZED and inputs % how.block_size:
        fits = [size for size in TENSORRT_BLOCKS if inputs % size == 0]
        mend = f"use --block-size {fits[0]}, or --target cuda" if fits else "use --target cuda, or no --quantize"
        raise InputError(f"a weight of {inputs} inputs cannot be stored in blocks of {how.block_size}; {mend}")


def dequantize(stored: QuantizedWeight, how: Quantization, inputs: int) -> NDArray[np.float32]:
    """Return the weight [in, out] that integers represent, in fp32 without rounding."""
    if how.operator == DEQUANTIZED:
        scales = np.repeat(stored.scales.astype(np.float32), how.block_size, axis=0)
        return stored.integers.astype(np.float32) * scales
    outputs, blocks = stored.scales.shape
    integers = _unpacked(stored.integers, how.bits).astype(np.float32)
    middle = np.full((outputs, blocks), 1 << (how.bits - 1), np.float32)
    zeros = middle if stored.zero_points is None else _unpacked(stored.zero_points, how.bits)[:, :blocks]
    rows = (integers - zeros[..., None]) * stored.scales.astype(np.float32)[..., None]
    weight: NDArray[np.float32] = np.ascontiguousarray(rows.reshape(outputs, -1)[:, :inputs].T)
    return weight


def rounded(weight: Array, how: Quantization) -> Array:
    """Quantize and dequantize a weight [in, out], in its own dtype."""
    return dequantize(quantize(weight, how), how, len(weight)).astype(weight.dtype)


def _for_operator(weight: Array, how: Quantization) -> QuantizedWeight:
    with _root_logger_kept():
        from onnxruntime.quantization.matmul_nbits_quantizer import (
            DefaultWeightOnlyQuantConfig,
            DefaultWeightOnlyQuantizer,
        )

    config = DefaultWeightOnlyQuantConfig(how.block_size, is_symmetric=how.symmetric, bits=how.bits)
    plain = weight.astype(np.float32) if weight.dtype == ml_dtypes.bfloat16 else weight  # the quantizer has no bf16
    integers, scales, zeros = DefaultWeightOnlyQuantizer(config).qbits_block_quant(np.ascontiguousarray(plain))
    return QuantizedWeight(integers, scales.astype(weight.dtype), None if how.symmetric else zeros)


def _for_dequantize(weight: Array, how: Quantization) -> QuantizedWeight:
    """Quantize with positive scales, as TensorRT requires; the quantizer for MatMulNBits may return negative ones."""
    from onnxruntime.quantization.quant_utils import compute_scale_zp_blocked, quantize_nparray

    check_width(len(weight), how)
    plain = weight.astype(np.float32)
    _, found = compute_scale_zp_blocked(plain, TensorProto.INT4, 0, how.block_size, symmetric=True)
    scales = found.astype(weight.dtype)
    scales[scales == 0] = 1  # a block of zeros, or of a scale that is 0 in this dtype
    steps = np.repeat(scales.astype(np.float32), how.block_size, axis=0)
    integers = quantize_nparray(TensorProto.INT4, plain, steps, np.float32(0))
    return QuantizedWeight(integers.astype(ml_dtypes.int4), scales, None)


@contextmanager
def _root_logger_kept() -> Iterator[None]:
    """Undo the setup of the root logger that ONNX Runtime 1.31 does when its quantizers are imported."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)


def _unpacked(packed: Array, bits: int) -> Array:
    """Unpack integers of 8 or 4 bits along the last axis, one per byte."""
    if bits == 8:
        return packed
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
