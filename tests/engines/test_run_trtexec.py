# SPDX-License-Identifier: Apache-2.0
"""Finding trtexec and running a recipe, with a program that only writes files."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.bundle.reader import Bundle
from secateur.engines import run_trtexec
from secateur.engines.build import build_lock
from secateur.engines.manifest import BuilderSettings
from secateur.engines.run_trtexec import find, run
from secateur.engines.shapes import cases, limits, profiles
from secateur.engines.trtexec import Recipe
from secateur.errors import BackendMissing, BadOutput
from secateur.export.bundle import Exported
from tests.profiling import made

Recipes = Callable[[Path], Recipe]


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Use an empty folder, with no PATH, no variable and no TensorRT."""
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.delenv("TRTEXEC", raising=False)
    monkeypatch.setattr(run_trtexec, "USUAL", tmp_path / "usual" / "trtexec")
    for name in ("path", "usual", "given", "variable"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_search_for_trtexec(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made.program(clean / "usual" / "trtexec")
    assert find() == clean / "usual" / "trtexec"
    made.program(clean / "path" / "trtexec")
    assert find() == clean / "path" / "trtexec"
    monkeypatch.setenv("TRTEXEC", str(made.program(clean / "variable" / "trtexec")))
    assert find() == clean / "variable" / "trtexec"
    assert find(str(made.program(clean / "given" / "other"))) == clean / "given" / "other"


def test_without_trtexec(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendMissing, match="neither on PATH nor at .*libnvinfer-bin.*--import.*--backend ort"):
        find()
    monkeypatch.setenv("TRTEXEC", str(clean))
    with pytest.raises(BackendMissing, match=f"'{clean}' is not a program"):
        find()
    made.program(clean / "path" / "trtexec")
    with pytest.raises(BackendMissing, match="'no/such' is not a program"):
        find("no/such")


@pytest.fixture
def recipes(trt_bundle: tuple[Path, Exported]) -> Recipes:
    """Return the recipe of `full` in a folder."""
    bundle = Bundle.load(trt_bundle[0])
    manifest = bundle.manifest
    room = limits(manifest)
    chosen = tuple(case for case in cases(manifest, room) if "full" in case.schedules)
    return lambda folder: Recipe(
        manifest, profiles(manifest, room, "full"), chosen, BuilderSettings(), folder, bundle.root
    )


def quiet(*_: object) -> None:
    pass


def test_every_case_is_built_and_timed(recipes: Recipes, tmp_path: Path) -> None:
    recipe, told = recipes(tmp_path / "work"), list[tuple[str, str, int, int]]()
    run(recipe, made.program(tmp_path / "trtexec"), lambda *step: told.append(step))
    for case in recipe.cases:
        for file in (case.times, case.layer_times, case.layers, case.log):
            assert (recipe.folder / file).is_file(), file
    assert "&&&& PASSED" in (recipe.folder / recipe.cases[0].log).read_text()
    assert [step[0] for step in told].count("time") == len(recipe.cases) + 1
    assert told[-1] == ("time", "", len(recipe.cases), len(recipe.cases))


def test_plans_are_kept_until_something_changes(recipes: Recipes, tmp_path: Path) -> None:
    tool, recipe = made.program(tmp_path / "trtexec"), recipes(tmp_path / "work")
    os.utime(tool, (1, 1))
    run(recipe, tool, quiet)
    plan, other = recipe.folder / "embed.plan", recipe.folder / "vision.plan"
    for path in (plan, other):
        path.write_text("kept")
    run(recipe, tool, quiet)
    assert plan.read_text() == other.read_text() == "kept"
    (recipe.folder / "vision.layers.json").unlink()
    run(recipe, tool, quiet)
    assert plan.read_text() == "kept" and other.read_text() == "plan"
    os.utime(tool)  # another trtexec, newer than the plans
    for path in (plan, other):
        os.utime(path, (1, 1))
    run(recipe, tool, quiet)
    assert plan.read_text() == other.read_text() == "plan"


def test_a_partial_plan_is_not_used(recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """trtexec and this process are killed while trtexec writes."""
    tool, recipe = made.program(tmp_path / "trtexec"), recipes(tmp_path / "work")
    os.utime(tool, (1, 1))
    run(recipe, tool, quiet)
    whole = tool.read_text()
    (recipe.folder / "embed.layers.json").unlink()
    tool.write_text(
        "#!/bin/sh\nfor word; do case $word in --saveEngine=*) echo half >${word#*=} ;; esac; done\nkill -9 $PPID\n"
    )
    os.utime(tool, (1, 1))
    if (child := os.fork()) == 0:
        run(recipe, tool, quiet)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (recipe.folder / "embed.plan").exists() and not (recipe.folder / "embed.build.txt").exists()
    tool.write_text(whole)
    os.utime(tool, (1, 1))
    run(recipe, tool, quiet)
    assert (recipe.folder / "embed.plan").read_text() == "plan"


def test_one_run_at_a_time(recipes: Recipes, tmp_path: Path) -> None:
    recipe = recipes(tmp_path / "work")
    with build_lock(recipe.folder), pytest.raises(BadOutput, match=f"another build is running in {recipe.folder}"):
        run(recipe, made.program(tmp_path / "trtexec"), quiet)
    assert not list(recipe.folder.glob("*.json"))


def test_trtexec_holds_the_lock(recipes: Recipes, tmp_path: Path) -> None:
    """If only this process is killed, the folder stays locked until trtexec ends."""
    recipe, tool = recipes(tmp_path / "work"), tmp_path / "trtexec"
    tool.write_text("#!/bin/sh\nls -l /proc/$$/fd\nexit 1\n")
    tool.chmod(0o755)
    run(recipe, tool, quiet)
    assert str(recipe.folder / ".lock") in (recipe.folder / "embed.build.log").read_text()


def test_a_file_instead_of_the_folder(recipes: Recipes, tmp_path: Path) -> None:
    (tmp_path / "work").write_text("x")
    with pytest.raises(BadOutput, match=f"output {tmp_path / 'work'} is not a folder; choose another one"):
        run(recipes(tmp_path / "work"), made.program(tmp_path / "trtexec"), quiet)


def test_a_plan_depends_on_all_weight_files_of_its_graph(recipes: Recipes, tmp_path: Path) -> None:
    tool, made_from = made.program(tmp_path / "trtexec"), recipes(tmp_path / "work")
    shutil.copytree(made_from.bundle, tmp_path / "bundle")
    weights, onnx = (tmp_path / "bundle" / "onnx" / name for name in ("shared.data", "embed.onnx"))
    weights.write_bytes(b"")
    onnx.write_bytes(onnx.read_bytes() + b"shared.data")
    listed = dataclasses.replace(made_from.manifest, files=made_from.manifest.files | {"onnx/shared.data": ""})
    recipe = dataclasses.replace(made_from, bundle=tmp_path / "bundle", manifest=listed)
    for path in (tool, *(tmp_path / "bundle").rglob("*")):
        os.utime(path, (1, 1))
    run(recipe, tool, quiet)
    plan, other = recipe.folder / "embed.plan", recipe.folder / "vision.plan"
    for path in (plan, other):
        path.write_text("kept")
    os.utime(weights, (4_000_000_000, 4_000_000_000))
    run(recipe, tool, quiet)
    assert plan.read_text() == "plan" and other.read_text() == "kept"


def test_a_failure_leaves_its_log_and_no_result(
    recipes: Recipes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool, recipe = made.program(tmp_path / "trtexec"), recipes(tmp_path / "work")
    run(recipe, tool, quiet)
    monkeypatch.setenv("FAIL", "embed")
    (recipe.folder / "embed.plan").unlink()
    run(recipe, tool, quiet)
    assert "OutOfMemory" in (recipe.folder / "embed.build.log").read_text()
    assert not (recipe.folder / "embed.plan").exists()
    failed = [case for case in recipe.cases if not (recipe.folder / case.times).exists()]
    assert failed and {case.graph for case in failed} == {"embed"}  # nor the result of the previous run
    assert not any((recipe.folder / case.log).exists() for case in failed)
