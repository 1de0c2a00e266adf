# SPDX-License-Identifier: Apache-2.0
"""Tolerances of the check after an export."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from secateur.bundle.manifest import Quantization
from secateur.export.bundle import Exported
from secateur.export.comparison import ROUNDED_ROWS, TOLERANCE, tolerance
from secateur.export.parity import _chain
from secateur.runtime.chain import Walk


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rounded_rows_are_allowed_no_less_than_half_precision(tiny_bundle: tuple[Path, Exported], dtype: str) -> None:
    manifest = dataclasses.replace(tiny_bundle[1].manifest, dtype=dtype)
    assert tolerance(manifest) == TOLERANCE[dtype]
    exact, rounding = (
        tolerance(dataclasses.replace(manifest, quantization=Quantization("int4", 32, accuracy_level=level)))
        for level in (0, 4)
    )
    assert exact == TOLERANCE[dtype]
    assert rounding == (TOLERANCE["bf16"] if dtype == "bf16" else ROUNDED_ROWS)


@pytest.mark.parametrize(("level", "kept", "passes"), [(0, 8, True), (0, 7, False), (4, 7, True), (4, 5, False)])
def test_tokens_after_rounded_rows_may_change_order(
    tiny_bundle: tuple[Path, Exported], level: int, kept: int, passes: bool
) -> None:
    """`kept` of 8 tokens are equal; logits are compared only if all are."""
    how = Quantization("int4", 32, accuracy_level=level)
    manifest = dataclasses.replace(tiny_bundle[1].manifest, quantization=how)
    found, expected = (
        Walk(np.ones((1, 4), np.float32), (20,), (), (np.array([[*range(kept), *range(first, first + 8 - kept)]]),))
        for first in (100, 200)
    )
    others, *logits = _chain("some", [found], [expected], manifest)
    assert others.passed == passes and bool(logits) == (kept == 8)
