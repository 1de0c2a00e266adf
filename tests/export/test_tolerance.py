# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from secateur.export.bundle import Exported
from secateur.export.tolerance import ROUNDED_ROWS, TOLERANCE, tolerance
from secateur.quantisation import Quantisation


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_rounded_rows_are_allowed_no_less_than_half_precision(tiny_bundle: tuple[Path, Exported], dtype: str) -> None:
    manifest = dataclasses.replace(tiny_bundle[1].manifest, dtype=dtype)
    assert tolerance(manifest) == TOLERANCE[dtype]
    exact, rounding = (
        tolerance(dataclasses.replace(manifest, quantisation=Quantisation("int4", 32, accuracy_level=level)))
        for level in (0, 4)
    )
    assert exact == TOLERANCE[dtype]
    assert rounding == (TOLERANCE["bf16"] if dtype == "bf16" else ROUNDED_ROWS)
