# SPDX-License-Identifier: Apache-2.0
"""One plan of one small graph, in this process: settings of the builder, and its errors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from secateur.bundle.strict_json import read_json, to_json
from secateur.engines import worker
from secateur.engines.manifest import BuilderSettings, Profile, Range
from secateur.engines.worker import Job, Result
from secateur.errors import BadEngine

Run = Callable[..., Result]


@pytest.fixture
def run(simulated: Any, tmp_path: Path) -> Run:
    """Build an attention over S rows with this minimum of S, and return the result as build.py reads it."""
    names = ("query", "key", "value", "out")
    q, k, v, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, "S", 8]) for name in names)
    node = helper.make_node("Attention", ["query", "key", "value"], ["out"], "attention")
    graph = helper.make_graph([node], "attends", [q, k, v], [out])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), tmp_path / "a.onnx")

    def one(least: int = 1, settings: BuilderSettings | None = None) -> Result:
        shapes = Range((1, 2, least, 8), (1, 2, 2, 8), (1, 2, 4, 8))
        profile = Profile("all", dict.fromkeys(names[:3], shapes))
        paths = [str(tmp_path / file) for file in ("a.onnx", "a.plan", "timing.cache", "result.json")]
        job = Job(paths[0], paths[1], paths[2], paths[3], (profile,), settings or BuilderSettings())
        (tmp_path / "job.json").write_text(to_json(job))
        code = worker.main(str(tmp_path / "job.json"))
        result = read_json(Result, tmp_path / "result.json", BadEngine)
        assert code == bool(result.error) and (tmp_path / "a.plan").exists() == (not result.error)
        return result

    return one


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    """Use the first version with an Attention layer."""
    monkeypatch.setenv("SIMULATED_TENSORRT_VERSION", "10.15.1.29")


def test_attention_may_be_decomposed(newer: None, run: Run) -> None:
    """The simulated GPU has no fused kernel for it."""
    assert run().error == ""


def test_the_builder_gets_the_settings(newer: None, run: Run, tmp_path: Path) -> None:
    """Also TF32 is disabled and layer names are detailed."""
    run(settings=BuilderSettings(7, 2, 1))
    plan = importlib.import_module("tensorrt._plan").Plan.unpack((tmp_path / "a.plan").read_bytes())
    assert plan.config == {"level": 2, "aux_streams": 1, "workspace": 7 * 1024**2, "tf32": 0}
    assert plan.verbosity == int(importlib.import_module("tensorrt").ProfilingVerbosity.DETAILED)


def test_a_timing_cache_of_another_gpu_is_replaced(
    newer: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_GPU", "Thor")
    run()
    monkeypatch.setenv("SIMULATED_GPU", "Orin")
    (tmp_path / "a.plan").unlink()
    assert "timing.cache is damaged or from another device; it was replaced" in run().warnings[0]
    assert run().warnings == ()


def test_a_damaged_timing_cache_is_not_reported_as_the_reason(
    newer: None, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timing.cache").write_bytes(b"damaged")
    monkeypatch.setenv("SIMULATED_OUT_OF_MEMORY", "a.onnx")
    assert run().error.startswith("TensorRT could not build it: ") and "timing cache" not in run().error
    assert "--masked-past" not in run().error and "--masked-past" in run(least=0).error


def test_a_changed_profile_is_refused(newer: None, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CLAMPS_EMPTY", "1")
    error = run(least=0).error
    assert "has the minimum (1, 2, 1, 8) for 'query' in its profile 'all' instead of (1, 2, 0, 8)" in error
    assert "build with --masked-past" in error


def test_an_older_version_without_attention(run: Run) -> None:
    assert "No importer registered for op: Attention" in run().error


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_errors_of_the_bindings_are_the_reason(
    kind: type[Exception], run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(job: Job) -> Result:
        raise kind("CUDA initialization failure\nwith error: 35")

    monkeypatch.setattr(worker, "build", fails)
    assert run().error == "CUDA initialization failure with error: 35"
    assert "Traceback" in capsys.readouterr().err


def test_a_builder_that_cannot_be_created(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_DEVICES", "0")
    assert run().error == "pybind11::init(): factory function returned nullptr"
