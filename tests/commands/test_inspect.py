# SPDX-License-Identifier: Apache-2.0
"""`secateur inspect`: lint for TensorRT, and wrong use."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from secateur.engines.version import Version
from secateur.export import lint
from secateur.export.bundle import Exported
from secateur.export.lint import Finding
from secateur.export.operator_rules import Table
from secateur.export.operators import table
from tests.commands.calling import call

Bundle = tuple[Path, Exported]


def test_operators_of_a_tensorrt_bundle(trt_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "inspect", trt_bundle[0], "--json")
    found = json.loads(out)["lint"]
    assert code == 0 and found["tensorrt"] == "10.3" and found["findings"] == []
    assert {"MatMul", "TopK"} <= {used["operator"] for used in found["operators"]}
    assert all(used["ok"] and used["count"] > 0 and used["source"] for used in found["operators"])
    code, out, _ = call(capsys, "inspect", trt_bundle[0])
    assert code == 0 and "TensorRT 10.3" in out and "TopK" in out and "source 1:" in out


def test_image_sizes_are_shown(trt_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capsys, "inspect", trt_bundle[0], "--json")
    (size,), layout = json.loads(out)["image_sizes"], trt_bundle[1].manifest.layout
    assert size["size"] == layout.size and size["views"] == [list(layout.grid)] and size["images"] == 1
    assert (size["rows"], size["vision_tokens"]) == (layout.rows, layout.vision_tokens)
    _, out, _ = call(capsys, "inspect", trt_bundle[0])
    assert f"1 of {layout.grid[0]} x {layout.grid[1]}" in out and layout.size in out


def test_another_version(
    trt_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def watched(version: Version) -> Table:
        asked.append(str(version))
        return table(version)

    monkeypatch.setattr(lint, "table", watched)
    _, out, _ = call(capsys, "inspect", trt_bundle[0], "--tensorrt", "10.16", "--json")
    assert json.loads(out)["lint"]["tensorrt"] == "10.16"
    assert asked == ["10.16"] * 2, "once for the operators, once for the findings"


def test_findings_are_shown_and_fail(
    trt_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = Finding("btp.0", "n7", "TopK", "K is no constant", "export again", "operators.md")
    monkeypatch.setattr(lint, "lint_bundle", lambda *_: (wrong,))
    code, out, err = call(capsys, "inspect", trt_bundle[0])
    assert code == 1 and "K is no constant" in out and "TensorRT 10.3 does not support 1 nodes of the bundle" in err


def test_without_onnx_all_but_the_lint_is_shown(
    trt_bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec

    def hidden(name: str, *rest: Any) -> Any:
        return None if name == "onnx" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", hidden)
    code, out, _ = call(capsys, "inspect", trt_bundle[0])
    assert code == 0 and "segment_1" in out and "onnx is not installed" in " ".join(out.split())


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--questions", "3"], "--questions needs --check"),
        (["--check", "--questions", "0"], "--questions is 0; it must be at least 1"),
        (["--tensorrt", "ten"], "'ten' is not a TensorRT version"),
    ],
)
def test_wrong_use_is_one_line(
    trt_bundle: Bundle, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    code, out, err = call(capsys, "inspect", trt_bundle[0], *argv)
    assert code == 2 and not out and err.count("\n") == 1 and message in err
