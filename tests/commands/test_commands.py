# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from secateur import commands, plugins
from secateur.api import Calibration
from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import read_json
from secateur.cli import one_line
from secateur.demo import sample_directory
from secateur.errors import BadSchedule
from tests.commands.calling import call, refused

Bundle = tuple[Path, dict[str, Any]]
FAST = ["--sample-count", "2"]


def test_export_reports_its_result(demo_bundle: Bundle) -> None:
    folder, printed = demo_bundle
    assert printed["worst_error"] <= 1e-4
    assert all(p["passed"] for p in printed["parity"])
    (schedule,) = printed["schedules"].values()
    keeps = [gate["keep"] for gate in schedule["gates"]]
    assert keeps == [72, 36, 12]
    assert set(printed["graphs"]) >= {"vision", "projector", "embed", "segment_0"}
    assert printed["bytes"] == sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def test_run_answers_and_shows_its_receipt(demo_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    folder, printed = demo_bundle
    image, questions = next(iter(json.loads((sample_directory() / "samples.json").read_text()).items()))
    image, question = sample_directory() / image, questions[0]["question"]
    code, out, _ = call(capsys, "run", folder, "--image", image, "--prompt", question, "--json")
    assert code == 0
    result = json.loads(out)
    (name,) = printed["schedules"]
    assert result["receipt"]["schedule"] == name
    assert [g["applied"] for g in result["receipt"]["gates"]] == [72, 36, 12]
    assert [len(kept) for kept in result["kept"]] == [72, 36, 12]
    code, out, _ = call(capsys, "run", folder, "--image", image, "--prompt", question, "--backend", "torch")
    assert code == 0 and f"answer    {result['answer']}" in out and "144 -> 72 vision tokens" in out


def test_settings_of_an_answer(demo_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags for the settings, their place in the receipt, and the marker of another program in the prompt."""
    folder, _ = demo_bundle
    image, question = sample_directory() / "scene_1.png", "what color is the seven ?"
    ask = ["run", folder, "--image", image, "--prompt"]
    code, out, err = call(capsys, *ask, f"<image>\n{question}", "--json")
    assert code == 0 and err.count("secateur: warning: image markers such as '<image>' are removed") == 1
    plain = json.loads(out)
    assert plain["receipt"]["sampling"]["top_k"] == 50 and plain["receipt"]["sampling"]["temperature"] == 0
    first = plain["answer"].split()[0]
    flags = ["--stop-strings", "nowhere", first[1:], "--max-new-tokens", "7", "--repetition-penalty", "1.2"]
    code, out, err = call(capsys, *ask, question, *flags)
    assert code == 0 and err == "" and f"answer    {first[0]}\n" in out
    settings = f"repetition_penalty 1.2, stop_strings ['nowhere', '{first[1:]}']"
    assert f"settings  the most likely tokens, at most 7, {settings}" in out
    code, out, _ = call(capsys, *ask, question, "--ignore-generation-config", "--temperature", "0.7", "--seed", "3")
    assert code == 0 and "settings  random draws, at most 64, temperature 0.7, seed 3\n" in out
    assert "top_p must be above 0 and at most 1, got 2.0" in refused(capsys, *ask, question, "--top-p", "2")
    assert "image marker '<image>' inside its text" in refused(capsys, *ask, "is <image> red ?")
    code, out, _ = call(capsys, "inspect", folder)
    assert code == 0 and "answers: the most likely tokens, at most 64\n" in out
    assert "one question" not in out and "no further question" not in out


def test_inspect(demo_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    folder, printed = demo_bundle
    code, out, _ = call(capsys, "inspect", folder, "--json")
    assert code == 0
    found = json.loads(out)
    assert [g["name"] for g in found["graphs"]] == printed["graphs"]
    assert set(found["schedules"]) == {"full", *printed["schedules"]}
    code, out, _ = call(capsys, "inspect", folder)
    assert code == 0 and "all hashes correct" in out
    part = folder / "onnx" / "layer_02.data"
    content = part.read_bytes()
    try:
        part.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        assert "layer_02.data" in refused(capsys, "inspect", folder)
    finally:
        part.write_bytes(content)


def test_calibrate_writes_a_schedule_that_export_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "s.json"
    code, printed, _ = call(capsys, "calibrate", *FAST, "--compression", "0.78", "--out", out, "--json")
    assert code == 0
    (schedule,) = json.loads(printed)["schedules"].values()
    assert abs(schedule["budget"]["compression"] - 0.78) < 0.01
    assert read_json(Schedule, out, BadSchedule).budget.compression == schedule["budget"]["compression"]
    assert "exists; add --force" in refused(capsys, "calibrate", *FAST, "--compression", "0.78", "--out", out)
    code, text, _ = call(
        capsys, "calibrate", *FAST, "--compression", "0.5,0.78", "--control", "--out", tmp_path / "many"
    )
    assert code == 0 and "similarity below tau" in text
    assert len(list((tmp_path / "many").glob("*.json"))) == 4
    same = json.loads(next((tmp_path / "many").glob("*-random.json")).read_text())
    assert same["method"] == "random"


def test_an_existing_schedule_is_refused_before_the_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Calibration, "run", lambda *_: pytest.fail("calibrated"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.json").write_text("precious")
    assert "output mine.json exists; add --force" in refused(capsys, "calibrate", *FAST, "--name", "mine")


def test_bad_export_options_are_refused_before_the_calibration(
    demo_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A calibration may take hours."""
    monkeypatch.setattr(Calibration, "run", lambda *_: pytest.fail("calibrated"))
    bundle, _ = demo_bundle
    (schedule,) = json.loads((bundle / "manifest.json").read_text())["schedules"].keys() - {"full"}
    other = json.loads((bundle / "schedules" / f"{schedule}.json").read_text())
    other["model"]["fingerprint"] = "sha256:0"
    (tmp_path / "other.json").write_text(json.dumps(other))
    start = ["export", "--method", "btp", "--out", tmp_path / "out"]
    assert "nowhere does not exist" in refused(capsys, *start, "--share", "nowhere")
    assert "of another model or dtype" in refused(capsys, *start, "--share", bundle, "--dtype", "fp16")
    assert "does not fit 'demo'" in refused(capsys, *start, "--schedule", tmp_path / "other.json")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["exprot"], "unknown command 'exprot'. Did you mean 'export'?"),
        (["export", "--method", "btb"], "unknown method 'btb'. Did you mean 'btp'?"),
        (["export", "--model", "nowhere"], "model 'nowhere' is neither"),
        (["export", "--target", "tensort"], "unknown target 'tensort'. Did you mean 'tensorrt'?"),
        (["export", "--dtype", "fp8"], "dtype 'fp8' is not known"),
        (["export", "--method", "random", "--tau", "0.9"], "arguments: --tau 0.9 (see secateur export -h)"),
        (["export", "--schedule", "none.json"], "none.json does not exist"),
        (["calibrate", *FAST, "--keep", "0.5", "--compression", "0.5"], "give one of them"),
        (["calibrate", *FAST, "--keep", "0.5,x"], "argument --keep: '0.5,x' is not a number, nor several as a,b"),
        (["calibrate", *FAST, "--layers", "2,x"], "argument --layers: '2,x' is not an integer, nor several as a,b"),
        (["calibrate", *FAST, "--keep", "0.25,0.5", "--layers", "2,4"], "must not grow"),
        (["calibrate", *FAST, "--keep", "145", "--layers", "2"], "145 tokens of 144"),
        (["calibrate", *FAST, "--layers", "4,2"], "gate layers must increase"),
        (["calibrate", *FAST, "--layers", "4,99"], "layer 99 is outside the model; its layers are 0 to 15"),
        (["calibrate", *FAST, "--layers", "8", "--compression", "0.9"], "compression 0.9 needs a first gate at layer"),
        (["calibrate", *FAST, "--compression", "1.5"], "compression 1.5"),
        (["calibrate", *FAST, "--name", "../x"], "schedule name '../x'"),
        (["calibrate", *FAST, "--name", "x", "--compression", "0.5,0.6"], "names one schedule"),
        (["calibrate", "--sample-count", "0"], "must be at least 1"),
        (["calibrate", "--samples", "nowhere"], "samples nowhere does not exist"),
        (
            ["calibrate", "--method", "fastv", "--samples", "nowhere", "--no-compare"],
            "--samples changes nothing: --method fastv measures",
        ),
        (["run", "nowhere", "--image", "x.png", "--prompt", "x"], "nowhere"),
        (["inspect", "tests"], "tests"),
    ],
)
def test_wrong_use_is_one_line(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in refused(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--schedule", "btp-72"], "unknown schedule 'btp-72'"),
        (["--backend", "orrt"], "unknown backend 'orrt'. Did you mean 'ort'?"),
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "red " * 2000], "positions"),
        (["--image", "no.png"], "no.png does not exist"),
        (["--image", "README.md"], "README.md"),
        (["--repeat", "0"], "--repeat is 0"),
        (["--top-p", "0"], "top_p"),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--threads", "0"], "threads"),
    ],
)
def test_wrong_questions_are_one_line(
    demo_bundle: Bundle, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    image = sample_directory() / "scene_1.png"
    assert message in refused(capsys, "run", demo_bundle[0], "--image", image, "--prompt", "what ?", *argv)


def test_help_lists_commands_and_the_options_of_the_method(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = call(capsys, "-h")
    assert code == 0 and all(name in out for name in plugins.names(commands))
    code, out, _ = call(capsys, "export", "--method", "btp", "-h")
    assert code == 0 and "options of btp" in out and "--epsilon" in out
    code, out, _ = call(capsys, "export", "--method", "random", "-h")
    assert code == 0 and "--epsilon" not in out


@pytest.mark.parametrize("size", ["448", "448x", "448x448x3", "1e3x2", "4_8x48", "", "48x48,"])
def test_invalid_sizes(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "calibrate", f"--image-size={size}")
    assert f"'{size}' is not a size; give WIDTHxHEIGHT, such as 448x336, several as a,b" in said


def test_too_little_memory_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        raise MemoryError("Unable to allocate 7.28 TiB")

    assert one_line(command) == 2
    assert capsys.readouterr().err == (
        "secateur: error: out of memory (Unable to allocate 7.28 TiB); close other programs, or ask for less\n"
    )
