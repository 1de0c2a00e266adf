# SPDX-License-Identifier: Apache-2.0
"""Support for bf16, which the package ml_dtypes adds to numpy."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from secateur.errors import BackendMissing

BF16 = "bfloat16"


def learn(dtype: str) -> None:
    """Import ml_dtypes if the dtype of a manifest is bf16, so that np.dtype("bfloat16") works.

    Raises:
        BackendMissing: ml_dtypes is not installed.
    """
    if dtype == "bf16":
        try:
            importlib.import_module("ml_dtypes")
        except ImportError:
            raise BackendMissing("a bundle in bf16 needs the package ml_dtypes; pip install ml_dtypes") from None


def is_float(dtype: np.dtype[Any]) -> bool:
    """Return whether `dtype` is a floating-point type; for bf16, numpy's `kind` is not 'f'."""
    return dtype.kind == "f" or dtype.name == BF16


def largest(dtype: np.dtype[Any]) -> float:
    """Return the largest finite number of a floating-point dtype."""
    if dtype.name == BF16:
        return float(2.0**127 * (2 - 2**-7))
    return float(np.finfo(dtype).max)
