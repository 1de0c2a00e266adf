# SPDX-License-Identifier: Apache-2.0
"""The table of precisions: shared bytes count once, and every line is compared with the first."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import pytest
from onnx import parser

from secateur.errors import InputError
from secateur.evaluation.precision_table import Cell, Line, markdown, table, weight_bytes
from secateur.evaluation.results import McNemar


def test_shared_bytes_count_once(tmp_path: Path) -> None:
    """Two graphs share a file with a large weight, and each has a small weight of its own."""
    for name in ("embed", "segment_0"):
        text = "(float[B,64] x) => (float[B,64] z) { y = MatMul(x, w) z = Add(y, b) }"
        model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> g {text}')
        for title, shape in (("w", (64, 64)), ("b", (64,))):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(shape, np.float32), title))
        (tmp_path / "shared.data").unlink(missing_ok=True)
        onnx.save(model, tmp_path / f"{name}.onnx", save_as_external_data=True, location="shared.data")
    specs = [SimpleNamespace(file=f"{kind}.onnx", kind=kind.partition("_")[0]) for kind in ("segment_0", "embed")]
    bundle = SimpleNamespace(manifest=SimpleNamespace(graphs=specs), path=lambda file: tmp_path / file)
    assert weight_bytes(cast(Any, bundle)) == (64 * 64 * 4 + 256, 64 * 64 * 4 + 512)


def test_a_line_shows_lost_and_won_answers() -> None:
    first = Line("fp32", "fp32", "ort", 9_480_000, 12_990_000, {"full": Cell(0.985, (0.973, 0.993), None)})
    other = Line("fp16", "int4", "ort", 1_390_000, 3_150_000, {"full": Cell(0.98, (0.97, 0.99), McNemar(4, 1, 0.4))})
    lines = markdown([first, other]).splitlines()
    assert lines[2] == "| fp32 | fp32 | ort | 9.48 | 12.99 | 98.5 (97.3 to 99.3) |"
    assert lines[3] == "| fp16 | int4 | ort | 1.39 | 3.15 | 98.0 (97.0 to 99.0) -4 +1 |"
    assert len({line.count("|") for line in lines}) == 1


def test_without_bundles() -> None:
    with pytest.raises(InputError, match="give at least one"):
        table([], cast(Any, SimpleNamespace(binary=True)))


@pytest.mark.parametrize("batch", [0, -1])
def test_an_empty_batch_is_refused(batch: int) -> None:
    with pytest.raises(InputError, match=f"--batch is {batch}; it must be at least 1"):
        table([cast(Any, SimpleNamespace())], cast(Any, SimpleNamespace(binary=True)), batch)
