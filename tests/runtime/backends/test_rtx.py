# SPDX-License-Identifier: Apache-2.0
"""Backend rtx on the simulated device: answers of backend ort, the runtime cache, and plans that it refuses."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.demo.scenes import samples
from secateur.engines.manifest import ENGINES, ENGINES_FILE
from secateur.errors import BackendMissing, BadEngine
from secateur.export.bundle import Exported
from secateur.runtime import Pipeline

QUESTION = "what color is the seven ?"


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_GPU", "NVIDIA GeForce RTX 3090")
    monkeypatch.setenv("SIMULATED_SM", "8.6")


@pytest.fixture
def root(rtx_engines_path: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(rtx_engines_path, tmp_path / "copy")
    return tmp_path / "copy"


def load(root: Path) -> Pipeline:
    return Pipeline.load(root, backend="rtx", verify=False)


def refused(root: Path, message: str, error: type[Exception] = BadEngine) -> None:
    with pytest.raises(error, match=message):
        load(root)


def used(root: Path) -> Path:
    """Folder of the plans that are loaded."""
    with load(root) as pipeline:
        backend: Any = pipeline._backend
        folder: Path = backend._plans.folder
    return folder


def kernels(root: Path) -> Path:
    return root / ENGINES / "rtx-1.7.1.116-sm86" / "nvidia-geforce-rtx-3090-sm8.6-16mp.kernels"


def test_answers_of_exported_graphs_equal_those_of_backend_ort(
    trt_bundle: tuple[Path, Exported], tmp_path: Path, simulated: Any, build_engines: Callable[..., Path]
) -> None:
    """The simulation uses ONNX Runtime's kernels, so the results are equal bit by bit."""
    root = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], root)
    build_engines(root, engine="rtx")
    image = next(iter(samples("calibration", 1, 0))).image
    with Pipeline.load(root, backend="rtx") as rtx, Pipeline.load(root, threads=1) as ort:
        assert len(rtx.schedules) > 4 and rtx.describe()["TensorRT for RTX"] == "1.7.1.116"
        for schedule in rtx.schedules:
            simulated.reset()
            got, want = (p.ask(image, "w1 w2 w3", schedule, max_new_tokens=6) for p in (rtx, ort))
            assert got.tokens == want.tokens and got.kept == want.kept, schedule
            assert np.array_equal(got.first_logits, want.first_logits), schedule
            assert simulated.launches >= len(got.tokens) - 2, "decode steps are recorded"


def test_kernels_are_compiled_once(root: Path, picture: Any, simulated: Any, caplog: pytest.LogCaptureFixture) -> None:
    for first in (True, False):
        simulated.reset()
        with load(root) as pipeline:
            pipeline.ask(picture(0), QUESTION, "prune", max_new_tokens=4)
        assert (simulated.compiled > 0) == first and kernels(root).is_file()
    assert not caplog.records


@pytest.mark.parametrize("damage", ["half", "other device", "empty"])
def test_a_damaged_runtime_cache_is_replaced(
    damage: str,
    root: Path,
    picture: Any,
    simulated: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def ask() -> None:
        simulated.reset()
        caplog.clear()
        with load(root) as pipeline:
            pipeline.ask(picture(0), QUESTION, "full", max_new_tokens=2)

    ask()
    whole = kernels(root).read_bytes()
    if damage == "other device":
        with monkeypatch.context() as other:
            other.setenv("SIMULATED_GPU", "NVIDIA GeForce RTX 3050")
            ask()
        (found,) = (path for path in kernels(root).parent.glob("*.kernels") if path != kernels(root))
        found.replace(kernels(root))
    else:
        kernels(root).write_bytes(whole[: len(whole) // 2] if damage == "half" else b"")
    ask()
    assert simulated.compiled and [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{kernels(root).name} is damaged, or from another GPU or driver; it is replaced" in caplog.text
    ask()
    assert not simulated.compiled and not caplog.records and kernels(root).read_bytes() == whole


def test_a_runtime_cache_that_cannot_be_written(root: Path, picture: Any, caplog: pytest.LogCaptureFixture) -> None:
    kernels(root).mkdir()
    with load(root) as pipeline:
        pipeline.ask(picture(0), QUESTION, "full", max_new_tokens=2)
    assert "cannot be written" in caplog.text and "compiled again at the next start" in caplog.text


def test_a_step_that_cannot_be_recorded(
    root: Path, picture: Any, simulated: Any, vlm: Pipeline, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    with load(root) as pipeline:
        backend: Any = pipeline._backend
        context = type(next(iter(backend._engines.values()))._contexts[0]._context)
        monkeypatch.setattr(context, "is_stream_capturable", lambda self, stream: False)
        got, want = (p.ask(picture(0), QUESTION, "prune", max_new_tokens=6) for p in (pipeline, vlm))
    assert got.tokens == want.tokens and simulated.captures <= 1 and not simulated.launches
    assert "TensorRT for RTX cannot run this engine inside a CUDA graph" in caplog.text


def test_several_folders_that_fit(root: Path) -> None:
    """One for this card alone, one for several, and those of other cards or with damage, which do not count."""
    alone = kernels(root).parent
    several, damaged = alone.with_name("rtx-1.7.1.116-sm86-sm89"), alone.with_name("rtx-1.7.1.116-damaged")
    shutil.copytree(alone, several)
    shutil.copytree(alone, damaged)
    (damaged / ENGINES_FILE).write_text("{")
    engines = json.loads((several / ENGINES_FILE).read_text())
    engines["platform"]["compute_capabilities"] = ["86", "89"]
    (several / ENGINES_FILE).write_text(json.dumps(engines))
    assert used(root) == alone
    old = json.loads((alone / ENGINES_FILE).read_text())
    old["plans"][0]["source"] = "0" * 64
    (alone / ENGINES_FILE).write_text(json.dumps(old))
    assert used(root) == several, "the other one is of another export"
    engines["platform"]["compute_capabilities"] = ["89"]
    (several / ENGINES_FILE).write_text(json.dumps(engines))
    refused(root, "was built from another export of this bundle")


def test_plans_that_do_not_fit(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as other:
        other.setenv("SIMULATED_SM", "8.9")
        refused(root, r"were built for SM 86, not 89; build the engines with `secateur build /.* --engine rtx --sm 89`")
        other.setenv("SIMULATED_SM", "9.0")
        refused(root, "does not support SM 90, only 75, .*; use `--backend trt`", BackendMissing)
    with pytest.raises(BadEngine, match="no engines for nvidia-geforce.*, only for rtx-1.7.1.116-sm86"):
        Pipeline.load(root, backend="trt", verify=False)
    file = kernels(root).parent / ENGINES_FILE
    engines = json.loads(file.read_text())
    file.write_text(json.dumps(engines | {"platform": engines["platform"] | {"compute_capabilities": ["86", "89"]}}))
    with monkeypatch.context() as other:
        other.setenv("SIMULATED_SM", "8.9")
        refused(root, r"\.plan cannot be loaded: .*incompatible device.*--sm 89 --max-batch 2 ")


@pytest.mark.parametrize(("version", "message"), [("1.8.0.1", "only for rtx-1.7.1.116-sm86"), ("1.6.1.120", "oldest")])
def test_another_version(version: str, message: str, rtx_engines_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.import_module("tensorrt_rtx"), "__version__", version)
    refused(rtx_engines_path, message, BadEngine if version > "1.7" else BackendMissing)
