# SPDX-License-Identifier: Apache-2.0
"""Memory and disk use of the export command: a large checkpoint is never in memory as a whole, and written once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.checkpoints.weights import STREAMED
from tests.full_size import config, write

GIB = 1 << 30
LAYERS = 11
CUTS = (2, 4, 6, 8, 10)


def checkpoint(folder: Path) -> int:
    """Write a LLaVA of a little more than a GiB in fp16, mostly decoder layers; returns the bytes of its weights."""
    shape = config(LAYERS, edge=28)
    text: Any = shape.text_config
    vision: Any = shape.vision_config
    text.hidden_size, text.intermediate_size, text.vocab_size = 2048, 5632, 512
    text.num_attention_heads = text.num_key_value_heads = 16
    vision.hidden_size, vision.intermediate_size, vision.num_attention_heads, vision.num_hidden_layers = 64, 64, 4, 2
    return write(folder, shape, shard=400_000_000)


def run(folder: Path, *arguments: str) -> tuple[str, int]:
    """Run the command; returns its output and its peak memory in bytes."""
    with (folder / "printed").open("w+") as out:
        command = [sys.executable, "export.py", *arguments, "--json"]
        child = subprocess.Popen(command, stdout=out, env=os.environ | {"OMP_NUM_THREADS": "1"})
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        assert child.returncode == 0
        return out.read(), usage.ru_maxrss * 1024


@pytest.mark.slow
def test_an_export_holds_no_model_and_writes_it_once(tmp_path: Path) -> None:
    """Includes the fingerprint, which reads every weight, and the calibration, but not the check."""
    size = checkpoint(tmp_path / "model")
    assert size > STREAMED
    printed, peak = run(
        tmp_path,
        *("--model", str(tmp_path / "model"), "--out", str(tmp_path / "bundle"), "--dtype", "fp16", "--no-check"),
        *("--method", "fastv", "--layers", ",".join(map(str, CUTS)), "--compression", "0.5"),
    )
    segment = max(b - a for a, b in zip((0, *CUTS), (*CUTS, LAYERS), strict=True)) * size // LAYERS
    assert len([name for name in json.loads(printed)["graphs"] if name.startswith("segment")]) == 1 + len(CUTS)
    assert peak <= 2 * segment + GIB < GIB / 2 + size, (peak, segment, size)
    written = sum(file.stat().st_size for file in (tmp_path / "bundle").rglob("*") if file.is_file())
    assert written <= 1.02 * size, (written, size)
