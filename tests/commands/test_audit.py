# SPDX-License-Identifier: Apache-2.0
"""`secateur audit`: document, page, exit codes and messages."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from secateur.cli import main
from secateur.export.bundle import Exported

Trt = tuple[Path, Exported]


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["audit", *words]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.count("\n") == 1
    return seen.err


def test_document_page_and_table(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx")
    page = tmp_path / "audit.html"
    words = [str(trt_bundle[0]), "--graphs", "projector,projector", "--max-text", "20", "--schedule", "btp"]
    assert main(["audit", *words, "--html", str(page), "--sm", "8.9", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [graph["name"] for graph in result["graphs"]] == ["projector"] and not result["problems"]
    assert result["schedule"] == "btp" and result["capabilities"] == ["89"]
    assert "secateur audit" in page.read_text(encoding="utf-8")
    assert main(["audit", *words]) == 0
    assert "projector" in capsys.readouterr().out
    assert "exists" in one_line(capsys, *words, "--html", str(page))


def test_bad_input(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(trt_bundle[0])
    assert "SM '87'; choose from 75, 80, 86, 89, 120, 121" in one_line(capsys, bundle, "--sm", "87")
    assert "unknown graph 'segment_x'" in one_line(capsys, bundle, "--graphs", "segment_x")
    assert "--force only applies to --html" in one_line(capsys, bundle, "--force")
    assert "unknown schedule" in one_line(capsys, bundle, "--schedule", "b")
    other = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], other)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8").replace('"target": "tensorrt"', '"target": "cpu"'))
    assert "target 'cpu', not for TensorRT" in one_line(capsys, str(other))


def test_without_the_library(
    trt_bundle: Trt, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert "pip install 'secateur[rtx]'" in one_line(capsys, str(trt_bundle[0]), "--graphs", "embed")
