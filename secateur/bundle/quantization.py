# SPDX-License-Identifier: Apache-2.0
"""Integer format of the decoder weights of a bundle."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.errors import InputError

BITS = {"int8": 8, "int4": 4}
BLOCKS = (16, 32, 64, 128, 256)
OPERATOR, DEQUANTIZED = "MatMulNBits", "DequantizeLinear"


@dataclass(frozen=True)
class Quantization:
    """Integers of type `name`, with a scale for each block of consecutive inputs of one output.

    symmetric       True: the zero point is fixed; False: every block has its own zero point
    operator        "MatMulNBits" (ONNX Runtime), or "DequantizeLinear" before a MatMul (ONNX)
    accuracy_level  of MatMulNBits: 0 multiplies in the dtype of the activations, 4 rounds these to 8 bits first
    """

    name: str
    block_size: int = 32
    symmetric: bool = False
    operator: str = OPERATOR
    accuracy_level: int = 0

    def __post_init__(self) -> None:
        if self.name not in BITS:
            raise InputError(f"quantization '{self.name}' is not known; use one of {', '.join(BITS)}")
        if self.block_size not in BLOCKS:
            raise InputError(f"block size {self.block_size} is not known; use one of {', '.join(map(str, BLOCKS))}")
        if self.operator not in (OPERATOR, DEQUANTIZED):
            raise InputError(f"quantized weights are read by {OPERATOR} or {DEQUANTIZED}, not by '{self.operator}'")
        if self.accuracy_level not in (0, 4):
            raise InputError(f"accuracy level {self.accuracy_level} is not known; use 0 (exact) or 4 (8-bit rows)")
        if self.operator == DEQUANTIZED and (self.name, self.symmetric, self.accuracy_level) != ("int4", True, 0):
            raise InputError(f"{DEQUANTIZED} reads symmetric int4 at accuracy level 0, not {self}")

    @property
    def bits(self) -> int:
        return BITS[self.name]

    def __str__(self) -> str:
        level = f", accuracy level {self.accuracy_level}" if self.accuracy_level else ""
        return f"{self.name} ({'symmetric' if self.symmetric else 'asymmetric'}, blocks of {self.block_size}{level})"
