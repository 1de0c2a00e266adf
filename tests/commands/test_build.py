# SPDX-License-Identifier: Apache-2.0
"""`secateur build` as a user types it: on the simulated TensorRT, without TensorRT, and as a dry run."""

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

from secateur.artifacts import Manifest
from secateur.cli import main
from secateur.engines.cases import Cases
from secateur.engines.limits import limits
from secateur.engines.shapes import profiles
from secateur.export.bundle import Exported

SIMULATION = Path(__file__).parent.parent / "simulation"
Trt = tuple[Path, Exported]


def secateur(*words: str, python_path: str = str(SIMULATION)) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, with a TensorRT that can be chosen."""
    environment = os.environ | {"PYTHONPATH": python_path, "SIMULATED_GPU": "NVIDIA H200", "SIMULATED_SM": "9.0"}
    return subprocess.run(
        [sys.executable, "-m", "secateur.cli", *words], env=environment, capture_output=True, text=True
    )


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
    assert folder == bundle / "engines" / f"nvidia-h200-sm9.0-trt{result['device']['tensorrt']}"
    assert all((folder / f"{graph}.plan").is_file() for graph in graphs)
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


def test_dry_run_needs_no_tensorrt(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, exported = trt_bundle
    out = tmp_path / "there, 'it' is"
    assert main(["build", str(bundle), "--dry-run", "--out", str(out)]) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert shlex.split(first) == ["cd", str(out)]
    made = Cases.read(out).cases
    assert len(lines) == len(exported.manifest.graphs) + len(made)
    result = dry(capsys, str(bundle), "--dry-run", "--out", str(out))
    assert [shlex.split(line) for line in lines] == [*result["build"].values(), *result["time"].values()]
    assert result["folder"] == str(out) and result["script"] is None
    assert set(result["time"]) == {case.name for case in made}


def test_dry_run_obeys_its_options(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_dry_run_writes_into_the_bundle_which_stays_one(
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
    assert main(["build", str(trt_bundle[0]), "--script", str(file)]) == 0
    assert f"wrote {file}: builds {len(trt_bundle[1].manifest.graphs)} plans" in capsys.readouterr().out
    assert os.access(file, os.X_OK) and Cases.read(file.parent).cases
    assert subprocess.run(["sh", "-n", str(file)]).returncode == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-text", "4000"], "the model's context has 256; lower --max-text or --max-new-tokens"),
        (["--max-new-tokens", "0"], "--max-new-tokens is 0; it must be at least 1"),
        (["--workspace", "0"], "--workspace is 0; it must be within 1 and"),
        (["--optimization-level", "9"], "--optimization-level is 9; it must be within 0 and 5"),
        (["--schedule", "btb"], "Did you mean 'btp'"),
        (["--out", "x"], "--out goes with --dry-run"),
        (["--dry-run", "--script", "a.sh", "--out", "x"], "--out goes with --dry-run"),
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


def test_no_place_to_write(trt_bundle: Trt, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert "is no folder; choose another --out" in one_line(
        capsys, str(trt_bundle[0]), "--dry-run", "--out", str(tmp_path / "file")
    )
