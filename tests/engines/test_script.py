# SPDX-License-Identifier: Apache-2.0
"""The script, run by sh with a fake trtexec that writes the files of its flags."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from secateur.engines.cases import Cases, layers
from secateur.engines.manifest import BuilderSettings, Limits
from secateur.engines.script import folder_of, script, write_script
from secateur.engines.shapes import cases, profiles
from secateur.engines.trtexec import Recipe
from secateur.export.bundle import Exported

STAND_IN = """#!/bin/sh
printf '%s\\n' "$*" >>"$FAKE_CALLS"
for word; do
    value=${word#*=}
    case $word in
    --onnx=* | --loadEngine=*) [ -f "$value" ] || { echo "no file $value"; exit 1; } ;;
    --loadInputs=*)
        for part in $(printf %s "$value" | tr ',' ' '); do
            [ -f "${part##*:}" ] || { echo "no input ${part##*:}"; exit 1; }
        done ;;
    --saveEngine=*) [ -n "${FAKE_NO_PLAN:-}" ] || echo '[]' >"$value" ;;
    --exportLayerInfo=* | --exportTimes=* | --exportProfile=* | --timingCacheFile=*)
        echo '[]' >"$value" ;;
    esac
    case $word in *"${FAKE_FAIL:-nothing fails}"*) echo "&&&& FAILED because asked"; exit 1 ;; esac
done
echo '&&&& PASSED TensorRT.trtexec [TensorRT v100300] # trtexec'
"""


@dataclass
class Device:
    """A copy of a bundle with the script in it, and a fake trtexec next to it.

    The graph vision names the weights shared.data.
    """

    bundle: Path
    recipe: Recipe
    calls: Path
    program: Path

    @property
    def folder(self) -> Path:
        return self.recipe.folder

    @property
    def script(self) -> Path:
        return self.folder.parent / "run.sh"

    def run(self, sh: str = "sh", **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the script from another folder."""
        variables = {"PATH": os.environ["PATH"], "TRTEXEC": str(self.program), "FAKE_CALLS": str(self.calls)}
        command = [sh, os.path.relpath(self.script, self.calls.parent)]
        self.calls.write_text("")
        return subprocess.run(
            command, cwd=self.calls.parent, env=variables | environment, capture_output=True, text=True
        )

    def called(self) -> list[str]:
        return self.calls.read_text().splitlines()


@pytest.fixture
def device(trt_bundle: tuple[Path, Exported], tmp_path: Path) -> Device:
    source, exported = trt_bundle
    bundle = tmp_path / "a bundle, it's 'new'"
    shutil.copytree(source, bundle)
    weights, limits = "onnx/shared.data", Limits(1, 12, 6)
    (bundle / weights).write_bytes(b"")
    with (bundle / "onnx" / "vision.onnx").open("ab") as file:
        file.write(b"shared.data")
    for path in bundle.rglob("*"):
        os.utime(path, (1_600_000_000, 1_600_000_000))
    manifest = dataclasses.replace(exported.manifest, files=exported.manifest.files | {weights: ""})
    few = tuple(case for case in cases(manifest, limits) if "btp" in case.schedules)
    at = bundle / "on device" / "run.sh"
    recipe = Recipe(manifest, profiles(manifest, limits, "btp"), few, BuilderSettings(), folder_of(at), bundle)
    recipe.write()
    write_script(recipe, at)
    os.utime(at, (1_600_000_000, 1_600_000_000))
    program = tmp_path / "bin" / "trtexec"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    os.utime(program, (1_600_000_000, 1_600_000_000))
    return Device(bundle, recipe, tmp_path / "calls", program)


@pytest.mark.parametrize("sh", ["sh", "dash", "bash"])
def test_builds_and_times_everything(device: Device, sh: str) -> None:
    if shutil.which(sh) is None:
        pytest.skip(f"{sh} is not installed")
    done = device.run(sh)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    graphs = [graph.name for graph in device.recipe.manifest.graphs]
    assert len(device.called()) == len(graphs) + len(device.recipe.cases)
    assert done.stdout.splitlines()[-1] == (
        f"{len(graphs)} plans, {len(device.recipe.cases)} timings in {device.folder}"
    )
    for graph in graphs:
        assert (device.folder / f"{graph}.plan").is_file() and (device.folder / layers(graph)).is_file()
    for case in Cases.read(device.folder).cases:
        for file in (case.times, case.layer_times, case.layers, case.log):
            assert (device.folder / file).is_file(), file
        assert "PASSED" in (device.folder / case.log).read_text()
    assert not list(device.folder.glob("*.part"))


def test_the_commands_are_those_of_the_dry_run(device: Device) -> None:
    assert device.run().returncode == 0
    expected = [*device.recipe.builds().values(), *device.recipe.times().values()]
    given = [line.replace(".plan.part", ".plan").replace(f"{device.bundle}/", "../../") for line in device.called()]
    assert given == [" ".join(command[1:]) for command in expected]


def test_a_plan_is_kept_until_something_it_depends_on_is_newer(device: Device) -> None:
    assert device.run().returncode == 0
    times = len(device.recipe.cases)
    assert device.run().stdout.count("keep ") == len(device.recipe.manifest.graphs)
    assert len(device.called()) == times
    os.utime(device.bundle / "onnx" / "embed.onnx", (4_000_000_000, 4_000_000_000))
    assert "build  embed" in device.run().stdout
    assert len(device.called()) == times + 1
    os.utime(device.bundle / "onnx" / "embed.onnx", (1_600_000_000, 1_600_000_000))
    os.utime(device.bundle / "onnx" / "shared.data", (4_000_000_000, 4_000_000_000))
    assert "build  vision" in device.run().stdout
    assert len(device.called()) == times + 1
    os.utime(device.script, (4_000_000_000, 4_000_000_000))
    device.run()
    assert len(device.called()) == times + len(device.recipe.manifest.graphs)


def test_a_failing_build_ends_the_script(device: Device) -> None:
    done = device.run(FAKE_FAIL="segment_0.plan")
    assert done.returncode == 1
    assert "&&&& FAILED because asked" in done.stderr
    assert f"error: trtexec failed, see {device.folder}/segment_0.build.log" in done.stderr
    assert not (device.folder / "segment_0.plan").exists()
    assert (device.folder / "embed.plan").exists()
    assert not list(device.folder.glob("*.times.json"))
    assert device.run().returncode == 0


def test_a_failing_timing_ends_the_script(device: Device) -> None:
    case = device.recipe.cases[-1]
    done = device.run(FAKE_FAIL=f"--exportTimes={case.times}")
    assert done.returncode == 1
    assert f"error: trtexec failed, see {device.folder}/{case.log}" in done.stderr


def test_a_missing_plan_without_an_error_of_trtexec(device: Device) -> None:
    done = device.run(FAKE_NO_PLAN="1")
    assert done.returncode == 1
    first = device.recipe.manifest.graphs[0].name
    assert done.stderr == f"error: trtexec wrote no plan, see {device.folder}/{first}.build.log\n"


def test_a_failed_run_removes_earlier_times(device: Device) -> None:
    assert device.run().returncode == 0
    (device.folder / "embed.plan").unlink()
    assert device.run(FAKE_FAIL="embed.plan").returncode == 1
    left = {path.name for path in device.folder.iterdir()}
    for case in device.recipe.cases:
        assert not left & {case.times, case.layer_times, case.log}
    assert "vision.build.log" in left and "vision.plan" in left


def test_earlier_results_are_removed(device: Device) -> None:
    """Also for cases that no longer exist."""
    assert device.run().returncode == 0
    first, *others = device.recipe.cases
    dataclasses.replace(device.recipe, cases=(first,)).write()
    for case in device.recipe.cases:
        for file in (case.times, case.layer_times, case.log):
            assert not (device.folder / file).exists(), file
    assert not any((device.folder / case.inputs).exists() for case in others)
    assert (device.folder / "embed.plan").exists()


def test_without_the_folder_of_inputs(device: Device) -> None:
    shutil.rmtree(device.folder)
    assert "error: the folder of the input files is missing; copy it too" in device.run().stderr


def test_without_trtexec(device: Device) -> None:
    done = device.run(TRTEXEC="/nowhere/trtexec")
    assert done.returncode == 1
    assert "error: TRTEXEC names no program; set it to the path of trtexec" in done.stderr
    done = device.run(TRTEXEC="")
    assert done.returncode == 1
    assert "error: trtexec was not found; install TensorRT's samples" in done.stderr


def test_trtexec_on_the_path_and_by_relative_path(device: Device) -> None:
    there = f"{device.program.parent}:{os.environ['PATH']}"
    assert device.run(TRTEXEC="", PATH=there).returncode == 0
    assert device.run(TRTEXEC="bin/trtexec").returncode == 0
    assert device.run(TRTEXEC="", PATH=f"bin:{os.environ['PATH']}").returncode == 0


def test_a_moved_bundle(device: Device) -> None:
    elsewhere = device.calls.parent / "else where"
    shutil.move(device.script.parent, elsewhere)
    elsewhere = elsewhere / device.folder.name
    moved = Device(device.bundle, device.recipe, device.calls, device.program)
    object.__setattr__(moved.recipe, "folder", elsewhere)
    done = moved.run()
    assert done.returncode == 1
    assert "is no bundle; set BUNDLE to its folder" in done.stderr
    done = moved.run(BUNDLE=os.path.relpath(device.bundle, device.calls.parent))
    assert done.returncode == 0, done.stderr
    (device.bundle / "onnx" / "embed.onnx").unlink()
    (elsewhere / "embed.plan").unlink()
    assert "onnx/embed.onnx is missing; copy the whole bundle" in moved.run(BUNDLE=str(device.bundle)).stderr
    (device.bundle / "onnx" / "shared.data").unlink()
    assert "onnx/shared.data is missing; copy" in moved.run(BUNDLE=str(device.bundle)).stderr


def test_the_script_is_portable(device: Device) -> None:
    """Only POSIX sh: no [[, no arrays, no local, no process substitution, no carriage returns."""
    text = script(device.recipe)
    assert text.startswith("#!/bin/sh\n") and text.endswith("\n") and "\r" not in text
    for word in ("[[", "local ", "<(", "function ", "echo ", "source ", " -nt "):
        assert word not in text, word
    assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
    assert os.access(device.script, os.X_OK)
