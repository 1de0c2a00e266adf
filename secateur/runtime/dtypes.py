# SPDX-License-Identifier: Apache-2.0
"""Support for bf16, which numpy lacks and the package ml_dtypes adds."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from secateur.errors import BackendMissing

BF16 = "bfloat16"


def learn(dtype: str) -> None:
    """Register the dtype of a manifest with numpy, so that np.dtype("bfloat16") works.

    Raises:
        BackendMissing: it is bf16, and ml_dtypes is not installed.
    """
    if dtype == "bf16":
        try:
            importlib.import_module("ml_dtypes")
        except ImportError:
            raise BackendMissing("a bundle in bf16 needs ml_dtypes; pip install ml_dtypes") from None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether an array of `dtype` can hold inf and NaN; numpy itself does not count bf16 among its floats."""
    return dtype.kind == "f" or dtype.name == BF16


def largest(dtype: np.dtype[Any]) -> float:
    """The largest finite number of a floating-point dtype."""
    if dtype.name == BF16:
        return float(2.0**127 * (2 - 2**-7))
    return float(np.finfo(dtype).max)
