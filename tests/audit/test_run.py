# SPDX-License-Identifier: Apache-2.0
"""An audit of graphs of the tiny bundle for TensorRT, in real processes."""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path

import onnx
import pytest

from secateur.audit.results import Audit
from secateur.audit.run import audit
from secateur.bundle.reader import Bundle
from secateur.engines.manifest import BuilderSettings, Limits
from secateur.engines.shapes import profiles
from secateur.export.bundle import Exported
from secateur.families.base import Family

Trt = tuple[Path, Exported]


def audited(root: Path, *graphs: str) -> Audit:
    pytest.importorskip("tensorrt_rtx")
    bundle = Bundle.load(root, verify=False)
    made = profiles(bundle.manifest, Limits(1, 20, 10), "btp")
    return audit(bundle, graphs, made, ("86",), BuilderSettings(), Limits(1, 20, 10), "btp")


def test_figures(trt_bundle: Trt, tiny: Family) -> None:
    found = audited(trt_bundle[0], "segment_1", "embed", "btp.0")
    assert not found.problems and found.compiler.startswith("TensorRT for RTX 1.")
    segment, embed, gate = found.graphs
    assert segment.layers == 1 and segment.plan > 0
    prefill, decode = segment.profiles
    assert (prefill.name, decode.name) == ("prefill", "decode") and prefill.attention == decode.attention == 1
    assert prefill.scratch > decode.scratch and prefill.products >= 4
    for profile in (*segment.profiles, *embed.profiles, *gate.profiles):
        assert profile.moved is not None and profile.least is not None and not profile.copies
        assert profile.moved >= profile.least
        assert sum(group.kernels for group in profile.largest) <= profile.kernels + 5
    weights = sum(weight.numel() * 2 for weight in tiny.decoder.layers[1].parameters())
    cache = 2 * sum(math.prod(decode.shapes[name]) for name in ("past_key.1", "past_value.1"))
    assert 0 < (decode.least or 0) - weights - cache < 2000  # rows, mask and positions
    assert embed.profiles[1].moved == embed.profiles[1].least  # reads one row of the table
    assert gate.kind == "gate" and [profile.name for profile in gate.profiles] == ["all"]


def test_a_graph_that_cannot_be_compiled(trt_bundle: Trt, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], bundle)
    path = bundle / "onnx" / "embed.onnx"
    model = onnx.load(path, load_external_data=False)
    model.graph.node[0].op_type = "NoSuchOperator"
    path.unlink()
    onnx.save(model, path)
    embed, projector = audited(bundle, "embed", "projector").graphs
    assert "cannot parse it" in embed.error and "NoSuchOperator" in embed.error and not embed.profiles
    assert not projector.error and projector.profiles


def test_a_compiler_that_crashes(trt_bundle: Trt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\ngrep -q embed.onnx "$3/job.json" && echo dying && kill -9 $$\nexec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    embed, projector = audited(trt_bundle[0], "embed", "projector").graphs
    assert embed.error == "its process ended with signal 9: dying"
    assert not projector.error and projector.profiles
