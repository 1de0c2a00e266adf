# SPDX-License-Identifier: Apache-2.0
"""`secateur profile`: timed in this process, by a fake trtexec that only writes files, and imported."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path

import pytest

from secateur.bundle.reader import Bundle
from secateur.cli import main
from secateur.engines import run_trtexec
from secateur.engines.cases import Cases
from secateur.export.bundle import Exported
from secateur.runtime.backends import ort
from tests.commands import calling
from tests.profiling import made

Trt = tuple[Path, Exported]
FEW = ("--rounds", 2, "--warmup", 0, "--new-tokens", 3, "--threads", 1)


def call(capsys: pytest.CaptureFixture[str], *argv: object) -> tuple[int, str, str]:
    return calling.call(capsys, "profile", *argv)


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    return calling.refused(capsys, "profile", *argv)


def test_a_backend_in_this_process(
    trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort.Backend, "describe", lambda backend: {"GPU": "Orin, SM 8.7"})
    out, html = tmp_path / "found.json", tmp_path / "found.html"
    argv = [trt_bundle[0], *FEW, "--schedules", "btp", "--out", out, "--html", html]
    code, printed, err = call(capsys, *argv, "--json")
    found = json.loads(printed)
    assert code == 0 and json.loads(out.read_text()) == found, err
    assert found["source"] == "ort" and found["rounds"] == 2 and not found["apart"]
    assert found["machine"]["GPU"] == "Orin, SM 8.7"
    full, pruned = found["chains"]
    assert (full["schedule"], pruned["schedule"]) == ("full", "btp")
    gates = [g for g in found["graphs"] if g["kind"] == "gate"]
    assert gates and all(set(g["shares"]) == {"btp"} and g["runs"] == 2 for g in gates)
    for chain in found["chains"]:
        assert 0 < chain["encode"]["p50"] < chain["first_token"]["p50"] and chain["first_token"]["p99"] > 0
        assert chain["gates_share"] == chain["stages"]["gates"] / chain["first_token"]["p50"]
    assert "found.html" in found["command"] and html.read_text().startswith("<!doctype html>")
    assert "exists; add --force" in refused(capsys, *argv)
    code, printed, _ = call(capsys, *argv, "--force")
    assert code == 0 and "Time to first token, ms, by ort" in printed and "Slowest graphs" in printed


def test_by_trtexec(
    trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, work = made.program(tmp_path / "trtexec"), tmp_path / "work"
    argv = [trt_bundle[0], "--schedules", "vtw", "--trtexec", tool, "--work", work]
    code, printed, err = call(capsys, *argv, "--json")
    found = json.loads(printed)
    assert code == 0, err
    assert found["source"] == "trtexec" and found["apart"] and found["machine"]["TensorRT"] == "10.3"
    assert [chain["schedule"] for chain in found["chains"]] == ["full", "vtw"] and not found["failures"]
    manifest = Bundle.load(trt_bundle[0]).manifest
    gates = {gate.graph for name, ref in manifest.schedules.items() if name != "vtw" for gate in ref.gates}
    built = {path.stem for path in work.glob("*.plan")}
    assert gates and built == {graph.name for graph in manifest.graphs} - gates, (
        "what only other schedules run is left out"
    )
    assert {name for case in Cases.read(work).cases for name in case.schedules} == {"full", "vtw"}
    first = [c for c in made.usual_cases(manifest) if "full" in c.schedules and c.kind != "decode"]
    assert found["chains"][0]["first_token"]["p50"] == pytest.approx(len(first))  # one millisecond each
    code, printed, _ = call(capsys, trt_bundle[0], "--import", work, "--json")
    assert code == 0 and [chain["schedule"] for chain in json.loads(printed)["chains"]] == ["full", "vtw"]
    assert "has no case of the schedule 'btp'" in refused(capsys, trt_bundle[0], "--import", work, "--schedules", "btp")

    monkeypatch.setenv("FAIL", "projector")
    (work / "projector.plan").unlink()
    code, printed, err = call(capsys, *argv)
    assert code == 1 and "failed: projector.encode" in printed and "OutOfMemory" in printed
    assert err.startswith("secateur: error: ") and "projector.encode" in err and len(err.strip().splitlines()) == 1
    assert "vision.encode" in printed  # the other graphs count


def test_trtexec_builds_the_same_plans_as_build(
    trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--schedule", "btp", "--max-batch", 3, "--max-text", 40, "--max-new-tokens", 9, "--masked-past"]
    options += ["--workspace", 99, "--optimization-level", 2, "--max-aux-streams", 1]
    tool, work = made.program(tmp_path / "trtexec"), tmp_path / "work"
    assert call(capsys, trt_bundle[0], *options, "--trtexec", tool, "--work", work, "--schedules", "vtw")[0] == 0
    command = ["build", trt_bundle[0], *options, "--dry-run", "--out", tmp_path / "dry", "--json"]
    assert main([str(word) for word in command]) == 0
    dry = json.loads(capsys.readouterr().out)["build"]
    built = {path.name.removesuffix(".build.txt"): shlex.split(path.read_text()) for path in work.glob("*.build.txt")}
    way = os.path.relpath(trt_bundle[0], work)
    for graph, words in built.items():
        theirs = [word.replace(os.path.relpath(trt_bundle[0], tmp_path / "dry"), way) for word in dry[graph]]
        theirs[2] += run_trtexec.PART
        assert words[1:] == theirs[1:] and "--memPoolSize=workspace:99M" in words
    assert len(built) > 3


def test_imported_tables(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = made.usual_cases(Bundle.load(trt_bundle[0]).manifest)
    warning = "* Throughput may be bound by Enqueue Time rather than GPU Compute"
    results = made.folder(
        trt_bundle[1].manifest, tmp_path / "results", cases, lambda case: 0.01 if case.graph == "embed" else 2.0
    )
    for case in (case for case in cases if case.graph == "embed"):
        (results / case.log).write_text(made.log(warning=warning))
    code, printed, _ = call(capsys, trt_bundle[0], "--import", results)
    assert code == 0
    said = " ".join(printed.split())
    for words in ("by trtexec", "an upper estimate", "Slowest layers of gates", 'say "top"', "mul [/red]", "enqueue"):
        assert words in said, words
    assert "note: The GPU may wait for the host (enqueue over compute): embed." in said
    assert "note: GPU times vary by more than 2.5 %" in said and "note: No real speed-up over full" in said


def test_without_trtexec(
    trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("TRTEXEC", raising=False)
    monkeypatch.setattr(run_trtexec, "USUAL", tmp_path / "trtexec")
    line = refused(capsys, trt_bundle[0], "--trtexec")
    assert "libnvinfer-bin" in line and "--import" in line and "--backend ort" in line
    assert "'nowhere' is not a program" in refused(capsys, trt_bundle[0], "--trtexec", "nowhere")


def test_wrong_use(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = trt_bundle[0]
    assert "give one of them" in refused(capsys, bundle, "--trtexec", "x", "--import", tmp_path)
    assert "--rounds does not apply to trtexec" in refused(capsys, bundle, "--import", tmp_path, "--rounds", 3)
    assert "add --trtexec" in refused(capsys, bundle, "--work", tmp_path)
    assert "--max-text only applies to engines that trtexec builds" in refused(capsys, bundle, "--max-text", 9)
    assert "--masked-past only applies to" in refused(capsys, bundle, "--masked-past", "--import", tmp_path)
    assert "--device does not apply to trtexec" in refused(capsys, bundle, "--device", "cpu", "--trtexec", "x")
    assert "backend 'ort' runs on cpu or cuda, not on 'gpu'" in refused(capsys, bundle, "--device", "gpu")
    assert "--rounds is 0; it must be at least 1" in refused(capsys, bundle, "--rounds", 0)
    assert "unknown schedule 'btq'. Did you mean 'btp'?" in refused(capsys, bundle, "--schedules", "btq")
    assert "unknown backend 'orr'" in refused(capsys, bundle, "--backend", "orr")
    both = tmp_path / "both"
    assert "choose two files" in refused(capsys, bundle, "--out", both, "--html", both)
    assert "has no cases.json" in refused(capsys, bundle, "--import", tmp_path)
    assert "does not exist" in refused(capsys, tmp_path / "no", "--import", tmp_path)
    image = tmp_path / "image.png"
    image.write_text("no image")
    assert "image.png" in refused(capsys, bundle, "--image", image)
