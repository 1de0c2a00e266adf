# SPDX-License-Identifier: Apache-2.0
"""Hostile headers of safetensors files and lists of samples: refused in one line, or inside the file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from PIL import Image

from secateur.calibration.samples import samples
from secateur.checkpoints.checkpoint import INDEX, Checkpoint
from secateur.errors import InputError

EXAMPLES = 100 if hypothesis.settings().derandomize else 2000
SCALARS = st.none() | st.booleans() | st.sampled_from([-1, 0, 1, 4, 8, 16, 2**31, 2**63, 10**30, 0.5, 1e308, -4])
TEXTS = st.sampled_from(
    ["F32", "F16", "I64", "X", "", "a", "a.png", "../a.png", "/dev/zero", "\0", "\ud800", "x" * 5000]
)
VALUES = st.recursive(
    SCALARS | TEXTS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3)
)
FIELDS = st.fixed_dictionaries(
    {
        "dtype": TEXTS | VALUES,
        "shape": st.lists(st.sampled_from([0, 1, 2, 4, -1, 10**20]), max_size=3) | VALUES,
        "data_offsets": st.lists(st.sampled_from([0, 4, 8, 16, -4, 10**20]), min_size=2, max_size=2) | VALUES,
    }
)
HEADERS = st.dictionaries(TEXTS, FIELDS | VALUES, max_size=3) | VALUES
settings = hypothesis.settings(max_examples=EXAMPLES, suppress_health_check=list(hypothesis.HealthCheck))


@hypothesis.given(
    HEADERS, st.integers(-8, 8), st.integers(0, 40), st.sampled_from([b"", b"[" * 100_000, b"\xff", b"9" * 5000])
)
@settings
def test_headers(tmp_path_factory: pytest.TempPathFactory, header: Any, longer: int, size: int, junk: bytes) -> None:
    folder = tmp_path_factory.getbasetemp()
    path = folder / "model.safetensors"
    text = json.dumps(header).encode() + junk
    path.write_bytes(max(0, len(text) + longer).to_bytes(8, "little") + text + bytes(size))
    try:
        found = Checkpoint.open(folder).tensors
    except InputError as problem:
        assert "\n" not in str(problem)
        return
    finally:
        whole = path.stat().st_size
        path.unlink()
    assert all(entry.offset + entry.size <= whole and min((0, *entry.shape)) == 0 for entry in found.values())


@hypothesis.given(st.dictionaries(TEXTS, TEXTS | VALUES, max_size=3) | VALUES)
@settings
def test_indices(tmp_path_factory: pytest.TempPathFactory, places: Any) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    try:
        assert Checkpoint.open(folder).tensors == {}
    except InputError as problem:
        assert "\n" not in str(problem)
    finally:
        (folder / INDEX).unlink()


@hypothesis.given(
    st.lists(st.dictionaries(st.sampled_from(["image", "text", "question", "x"]), VALUES) | VALUES, max_size=3)
)
@settings
def test_samples(tmp_path_factory: pytest.TempPathFactory, entries: list[Any]) -> None:
    folder = tmp_path_factory.getbasetemp()
    Image.new("RGB", (2, 2)).save(folder / "a.png")
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, entries)))
    try:
        (sample,) = samples("x", folder / "samples.jsonl", 1, 0)
    except InputError as problem:
        assert "\n" not in str(problem)
    else:
        assert isinstance(sample.question, str) and str(sample.image).endswith("a.png")


def test_a_pipe_of_samples_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "samples.jsonl")
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    for name in ("samples.jsonl", "zero.jsonl"):
        with pytest.raises(InputError, match="not a regular file"):
            samples("x", tmp_path / name, 1, 0)
