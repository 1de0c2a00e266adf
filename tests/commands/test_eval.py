# SPDX-License-Identifier: Apache-2.0
"""`secateur eval` on the demo bundle: generated questions, and folders in common formats."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from PIL import Image

from secateur.errors import InputError
from secateur.evaluation import results
from tests.commands.calling import call, refused

Bundle = tuple[Path, dict[str, Any]]
FEW = ["--questions", "12", "--timed", "1"]


def test_the_demo_model_answers_with_and_without_pruning(
    demo_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out questions on the exported chain: the trained model works, also with pruning."""
    out = tmp_path / "found.json"
    argv = ["eval", demo_bundle[0], "--questions", 120, "--seed", 1, "--timed", 2, "--out", out, "--json"]
    code, printed, _ = call(capsys, *argv)
    found = json.loads(printed)
    assert code == 0 and json.loads(out.read_text()) == found
    full, pruned = found["schedules"]
    (name,) = demo_bundle[1]["schedules"]
    assert (full["name"], pruned["name"]) == ("full", name)
    assert full["score"] >= 0.93 and pruned["retention"] >= 0.8
    assert [gate["keep"] for gate in pruned["gates"]] == [72, 36, 12]
    assert set(full["groups"]) == {"color", "digit", "count", "position", "digit_at", "presence"}
    assert {"vision", "projector", "embed", "segment_0", "encode", "prefill"} <= set(full["stage_ms"])
    assert found["segments"] == 4 and found["encoder_scores"] == []
    assert sum(stage.startswith(f"{name}.") for stage in pruned["stage_ms"]) == 3
    assert pruned["cache_bytes"] < full["cache_bytes"] and found["command"].startswith("secateur eval ")
    assert "exists; add --force" in refused(capsys, *argv)
    again = json.loads(call(capsys, *argv, "--force")[1])
    timeless = [{k: v for k, v in s.items() if k not in ("ttft_ms", "stage_ms")} for s in found["schedules"]]
    assert [{k: v for k, v in s.items() if k not in ("ttft_ms", "stage_ms")} for s in again["schedules"]] == timeless


def test_tables(demo_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "eval", demo_bundle[0], *FEW)
    assert code == 0
    assert "accuracy, %, on 12 questions (demo)" in out and "Time to first token of 1 questions" in out
    assert "by kind of question" in out and "presence" in out and "lost" in out
    assert "This bundle cuts the decoder into 4 segments" in " ".join(out.split())


def test_the_report_gets_result_and_overlays(
    demo_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def report(evaluation: results.Evaluation, overlays: list[results.Overlay]) -> str:
        given.extend((evaluation, overlays))
        return "<html>"

    module = ModuleType("secateur.evaluation.report")
    monkeypatch.setattr(module, "report", report, raising=False)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    page = tmp_path / "report.html"
    code, _, _ = call(capsys, "eval", demo_bundle[0], *FEW, "--html", page)
    assert code == 0 and page.read_text() == "<html>"
    evaluation, overlays = given
    assert len(overlays) == 4 and set(overlays[0].answers) == {s.name for s in evaluation.schedules}
    assert [len(kept) for kept in overlays[0].answers[evaluation.schedules[1].name].kept] == [72, 36, 12]
    assert overlays[0].image.size == (96, 96)
    assert call(capsys, "eval", demo_bundle[0], *FEW, "--html", page, "--force", "--overlays", 0)[0] == 0
    assert given[3] == []


def test_the_result_is_written_before_the_report(
    demo_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def report(evaluation: results.Evaluation, overlays: list[results.Overlay]) -> str:
        raise InputError("no page")

    monkeypatch.setattr("secateur.evaluation.report.report", report)
    out, page = tmp_path / "found.json", tmp_path / "report.html"
    assert "no page" in refused(capsys, "eval", demo_bundle[0], *FEW, "--out", out, "--html", page)
    assert json.loads(out.read_text())["questions"] == 12 and not page.exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--out", "file/below.json"], "below.json cannot be written"),
        (["--html", "file/below.html"], "below.html cannot be written"),
        (["--html", "shut/report.html"], "report.html cannot be written"),
        (["--out", "same", "--html", "same"], "overlap; choose two separate files"),
        (["--out", "./same", "--html", "x/../same"], "overlap; choose two separate files"),
        (["--out", "one", "--html", "one/below"], "overlap; choose two separate files"),
        (["--overlays", "9"], "--overlays is 9, but there is no report for them; add --html"),
        (["--data", ""], "argument --data: the path is empty; name a file or folder"),
        (["--images", ""], "argument --images: the path is empty"),
    ],
)
def test_output_is_checked_before_the_bundle_is_loaded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "shut").mkdir()
    monkeypatch.chdir(tmp_path)
    may = os.access  # a test may run as root, for whom folder modes have no effect
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "shut" and may(path, mode))
    assert message in refused(capsys, "eval", "no-bundle", *argv)


def test_a_missing_package_of_the_report_is_reported_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Jinja2 is installed with Secateur itself, not with the extra for the export."""
    for name in ("secateur.evaluation.report", "secateur.report.page"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    line = refused(capsys, "eval", "no-bundle", "--html", tmp_path / "report.html")
    assert line.endswith("jinja2 is not installed; pip install secateur")


def test_a_folder(demo_bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    for i in range(6):
        Image.new("RGB", (50, 40), (40 * i, 0, 0)).save(tmp_path / f"{i}.png")
        asked.append(
            {
                "question_id": i,
                "image": f"{i}.png",
                "text": "is there a five ?",
                "label": "no",
                "category": ("random", "popular")[i % 2],
            }
        )
    data = tmp_path / "pope.jsonl"
    data.write_text("\n".join(json.dumps(line) for line in asked))
    argv = ["eval", demo_bundle[0], "--task", "pope", "--data", data, "--timed", "1", "--schedules", "full"]
    code, out, _ = call(capsys, *argv, "--json")
    found = json.loads(out)
    (full,) = found["schedules"]
    assert code == 0 and found["metric"] == "f1" and found["task"] == f"pope: {data}" and found["questions"] == 6
    assert set(full["metrics"]) == {"accuracy", "precision", "recall", "yes_ratio"}
    assert set(full["groups"]) == {"random", "popular"}
    # No label is yes, so F1 is always 0, and retention is undefined.
    assert full["score"] == 0 and full["retention"] is None and full["metrics"]["yes_ratio"] < 1
    assert call(capsys, *argv)[0] == 0
    asked[4]["text"] = "is there a five ? " * 200
    data.write_text("\n".join(json.dumps(line) for line in asked))
    line = refused(capsys, *argv)
    assert f"question '4' ({data} line 5): the prompt and 16 new tokens need" in line


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--task", "dmeo"], "unknown task 'dmeo'. Did you mean 'demo'?"),
        (["--task", "pope"], "--task pope needs --data"),
        (["--data", "x.jsonl"], "--data cannot be used with --task demo"),
        (["--task", "gqa", "--data", "x.jsonl"], "x.jsonl does not exist"),
        (["--schedules", "fulll"], "unknown schedule 'fulll'. Did you mean 'full'?"),
        (["--questions", "0"], "--questions is 0"),
        (["--timed", "0"], "--timed is 0"),
        (["--batch", "0"], "--batch is 0"),
        (["--seed", "-1"], "--seed is -1"),
        (["--schedules", ","], "--schedules is ',', which has no name; give names as a,b, or all"),
        (["--overlays", "-1"], "--overlays is -1"),
        (["--out", "tests"], "output tests is a folder"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0"),
        (["--backend", "orrt"], "Did you mean 'ort'?"),
    ],
)
def test_wrong_use_is_one_line(
    demo_bundle: Bundle, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert message in refused(capsys, "eval", demo_bundle[0], "--questions", "2", *argv)
