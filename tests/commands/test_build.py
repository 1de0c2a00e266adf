# SPDX-License-Identifier: Apache-2.0
"""`secateur build`: on the simulated TensorRT, without TensorRT, and as a dry run."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from secateur.bundle.manifest import Manifest
from secateur.cli import main
from secateur.engines.cases import Cases
from secateur.engines.shapes import limits, profiles
from secateur.export.bundle import Exported

SIMULATION = Path(__file__).parent.parent / "simulation"
Trt = tuple[Path, Exported]


def secateur(*words: str, python_path: str = str(SIMULATION)) -> subprocess.CompletedProcess[str]:
    """Run the command in a new process, with the chosen TensorRT."""
    environment = os.environ | {"PYTHONPATH": python_path, "SIMULATED_GPU": "NVIDIA H200", "SIMULATED_SM": "9.0"}
    return subprocess.run([sys.executable, "-m", "secateur", *words], env=environment, capture_output=True, text=True)


def dry(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["build", *words, "--json"]) == 0
    printed: dict[str, Any] = json.loads(capsys.readouterr().out)
    return printed


def one_line(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(["build", *words]) == 2
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.count("\n") == 1
    return seen.err


def test_build(trt_bundle: Trt, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], bundle)
    done = secateur("build", str(bundle), "--max-text", "20", "--max-new-tokens", "10", "--schedule", "btp", "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    graphs = [graph.name for graph in trt_bundle[1].manifest.graphs]
    assert result["new"] == graphs == [plan["graph"] for plan in result["plans"]]
    assert result["device"]["gpu"] == "NVIDIA H200" and result["device"]["sm"] == "9.0"
    assert result["limits"] == {"batch": 1, "text": 20, "new_tokens": 10} and result["schedule"] == "btp"
    folder = Path(result["folder"])
    assert folder == bundle / "engines" / f"nvidia-h200-sm9.0-16mp-trt{result['version']}"
    assert all(len(list(folder.glob(f"{graph}-*.plan"))) == 1 for graph in graphs)
    again = secateur("build", str(bundle), "--max-text", "20", "--max-new-tokens", "10", "--schedule", "btp")
    assert again.returncode == 0 and "unchanged" in again.stdout and "built" not in again.stdout
    assert again.stdout.count(str(folder)) == 1 and again.stderr == ""


def test_without_tensorrt(trt_bundle: Trt, tmp_path: Path) -> None:
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.10: cannot open shared object file')")
    done = secateur("build", str(trt_bundle[0]), python_path=str(tmp_path))
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1
    for words in ("TensorRT cannot be loaded (libnvinfer.so.10", "tensorrt-cu13", "--backend ort", "--dry-run"):
        assert words in done.stderr


def test_build_for_other_gpus(trt_bundle: Trt, tmp_path: Path) -> None:
    """With NVIDIA's compiler, which needs no GPU."""
    pytest.importorskip("tensorrt_rtx")
    bundle = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], bundle)
    words = ["build", str(bundle), "--engine", "rtx", "--sm", "86", "--max-text", "20", "--max-new-tokens", "10"]
    done = secateur(*words, "--json", python_path="")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    graphs = [graph.name for graph in trt_bundle[1].manifest.graphs]
    assert result["new"] == graphs and result["warnings"] == []
    assert (result["engine"], result["compute_capabilities"], result["device"]) == ("rtx", ["86"], None)
    folder = Path(result["folder"])
    assert folder == bundle / "engines" / f"rtx-{result['version']}-sm86"
    assert {path.suffix for path in folder.iterdir()} == {"", ".json", ".log", ".plan"}, "there is no timing cache"
    memory = {plan["graph"]: plan["memory"] for plan in result["plans"]}
    assert memory["segment_0"] > 1000, "from the log of the builder"
    again = json.loads(secateur(*words, "--json", python_path="").stdout)
    assert again["new"] == [] and again["plans"] == result["plans"]


def test_without_tensorrt_for_rtx(trt_bundle: Trt, tmp_path: Path) -> None:
    words = ("build", str(trt_bundle[0]), "--engine", "rtx")
    for text, message in (
        ("raise ImportError('libtensorrt_rtx.so.1')", "for RTX cannot be loaded (libtensorrt_rtx.so.1); pip install"),
        ("__version__ = '1.6.1.120'", "TensorRT for RTX is 1.6.1.120, and 1.7 is the oldest; pip install"),
    ):
        (tmp_path / "tensorrt_rtx.py").write_text(text)
        done = secateur(*words, python_path=str(tmp_path))
        assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1
        assert message in done.stderr


def test_weights_that_tensorrt_for_rtx_does_not_take(trt_bundle: Trt, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], bundle)
    text = (bundle / "manifest.json").read_text()
    manifest = json.loads(text)
    integers = {"name": "int8", "block_size": 32, "symmetric": False, "operator": "MatMulNBits", "accuracy_level": 0}
    for change, words, message in (
        ({"target": "cpu", "quantisation": integers}, [], "weights as int8 for ONNX Runtime (target 'cpu'); export it"),
        ({"dtype": "bf16"}, ["--sm", "75,86"], "SM 75 has no bf16; export with --dtype fp16, or leave out SM 75"),
    ):
        (bundle / "manifest.json").write_text(json.dumps(manifest | change))
        done = secateur("build", str(bundle), "--engine", "rtx", *words)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and message in done.stderr, done.stderr


def test_dry_run_needs_no_tensorrt(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, exported = trt_bundle
    out = tmp_path / "there, 'it' is"
    assert main(["build", str(bundle), "--dry-run", "--out", str(out)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"# in {out}:"
    made = Cases.read(out).cases
    assert len(lines) == len(exported.manifest.graphs) + len(made)
    result = dry(capsys, str(bundle), "--dry-run", "--out", str(out))
    assert [shlex.split(line) for line in lines] == [*result["build"].values(), *result["time"].values()]
    assert result["folder"] == str(out) and result["script"] is None
    assert set(result["time"]) == {case.name for case in made}


def test_help_describes_the_batch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["build", "--help"])
    assert "samples at once; optimized for 1 (default: 1)" in " ".join(capsys.readouterr().out.split())


def test_dry_run_uses_its_options(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, exported = trt_bundle
    manifest: Manifest = exported.manifest
    options = ["--max-batch", "3", "--max-text", "11", "--max-new-tokens", "7", "--schedule", "vtw", "--masked-past"]
    options += ["--workspace", "512", "--optimization-level", "2", "--max-aux-streams", "1"]
    result = dry(capsys, str(bundle), "--dry-run", "--out", str(tmp_path), *options)
    expected = profiles(manifest, limits(manifest, 3, 11, 7), "vtw", 1)
    for graph, command in result["build"].items():
        assert {"--memPoolSize=workspace:512M", "--builderOptimizationLevel=2", "--maxAuxStreams=1"} <= set(command)
        for profile in expected[graph]:
            for which in ("min", "opt", "max"):
                name, ranges = next(iter(profile.ranges.items()))
                shape = "x".join(map(str, getattr(ranges, which)))
                assert any(word.startswith(f"--{which}Shapes={name}:{shape}") for word in command)


def test_a_bundle_stays_valid_after_a_dry_run(
    trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], bundle)
    result = dry(capsys, str(bundle), "--dry-run")
    assert result["folder"] == str(bundle / "engines" / "trtexec")
    assert result["build"]["embed"][1] == "--onnx=../../onnx/embed.onnx"
    assert main(["inspect", str(bundle)]) == 0


def test_script(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "on device" / "run.sh"
    words = ["build", str(trt_bundle[0]), "--script", str(file)]
    assert main(words) == 0
    assert f"wrote {file}: builds {len(trt_bundle[1].manifest.graphs)} plans" in capsys.readouterr().out
    assert os.access(file, os.X_OK) and Cases.read(file.with_name("run.files")).cases
    assert {path.name for path in file.parent.iterdir()} == {"run.sh", "run.files"}
    assert subprocess.run(["sh", "-n", str(file)]).returncode == 0
    file.write_text("mine")
    assert f"output {file} exists; add --force" in one_line(capsys, *words[1:])
    assert file.read_text() == "mine"
    assert main([*words, "--force"]) == 0 and file.read_text().startswith("#!/bin/sh")


def test_only_some_schedules(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    every = dry(capsys, str(trt_bundle[0]), "--dry-run", "--out", str(tmp_path))
    some = dry(capsys, str(trt_bundle[0]), "--dry-run", "--out", str(tmp_path), "--schedules", "vtw")
    assert {name for case in Cases.read(tmp_path).cases for name in case.schedules} == {"full", "vtw"}
    assert some["build"].items() < every["build"].items() and some["time"].items() < every["time"].items()


def test_a_script_does_not_replace_files(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is written in that case."""
    (tmp_path / "link.sh").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.files").write_text("mine")
    before = sorted(tmp_path.iterdir())
    for name, message in (
        ("link.sh", "is not a regular file"),
        ("pipe", "is not a regular file"),
        (".", "is a folder; give the path of a file"),
        ("a.files/run.sh", "is not a writable folder"),
        ("a.sh", "a.files is not a folder; choose another one"),
        ("run.files", "has the name of the folder for its files; choose another name"),
    ):
        for more in ([], ["--force"]):
            assert message in one_line(capsys, str(trt_bundle[0]), "--script", str(tmp_path / name), *more)
    assert "is a folder; give the path of a file" in one_line(capsys, str(trt_bundle[0]), "--script", "")
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "a.files").read_text() == "mine"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-text", "4000"], "the model's context has 256; lower --max-text or --max-new-tokens"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--workspace", "0"], "--workspace is 0; it must be between 1 and"),
        (["--optimization-level", "9"], "--optimization-level is 9; it must be between 0 and 5"),
        (["--schedule", "btb"], "Did you mean 'btp'"),
        (["--out", "x"], "--out needs --dry-run"),
        (["--script", "a.sh", "--out", "x"], "--out needs --dry-run"),
        (["--dry-run", "--script", "a.sh"], "give one of them"),
        (["--force"], "--force only applies to --script"),
        (["--schedules", "btp"], "--schedules needs --dry-run or --script"),
        (["--dry-run", "--schedules", "btb"], "Did you mean 'btp'"),
        (["--max-text", "1", "--dry-run"], "--max-text is 1; the shortest question has"),
        (["--engine", "rt"], "unknown engine 'rt'. Did you mean 'trt'?"),
        (["--sm", "86"], "--sm needs --engine rtx"),
        (["--engine", "rtx", "--sm", "87"], "SM '87'; choose from 75, 80, 86, 89, 120, 121; 86 is nearest to Orin"),
        (["--engine", "rtx", "--optimization-level", "2"], "changes nothing with --engine rtx; leave it out"),
        (["--engine", "rtx", "--dry-run"], "for trtexec of TensorRT; leave out --engine rtx"),
    ],
)
def test_refused(trt_bundle: Trt, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert message in one_line(capsys, str(trt_bundle[0]), *words)


def test_a_bundle_of_another_target(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], bundle)
    text = (bundle / "manifest.json").read_text()
    (bundle / "manifest.json").write_text(text.replace('"target": "tensorrt"', '"target": "cuda"'))
    for words in ([], ["--dry-run"]):
        message = one_line(capsys, str(bundle), *words)
        assert "exported for the target 'cuda', not for TensorRT; export it with --target tensorrt" in message


def test_an_output_that_cannot_be_written(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "is not a folder; choose another one" in one_line(
        capsys, str(trt_bundle[0]), "--dry-run", "--out", str(tmp_path / "file")
    )
