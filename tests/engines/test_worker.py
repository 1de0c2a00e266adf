# SPDX-License-Identifier: Apache-2.0
"""One plan of one small graph, in this process: settings of the builder, and its errors."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import pytest
from onnx import TensorProto, helper

from secateur.bundle.strict_json import read_json, to_json
from secateur.engines import worker
from secateur.engines.jobs import ERROR, JOB, RESULT, serve
from secateur.engines.library import DEFAULT
from secateur.engines.manifest import BuilderSettings, Profile, Range
from secateur.engines.worker import Job, Result
from secateur.errors import BadEngine


class Outcome(NamedTuple):
    warnings: tuple[str, ...]
    error: str


Run = Callable[..., Outcome]


@pytest.fixture
def run(simulated: Any, tmp_path: Path) -> Run:
    """Build one operator over S rows with this minimum of S, and return what the job leaves."""

    def one(
        least: int = 1,
        settings: BuilderSettings | None = None,
        operator: str = "Relu",
        platform: tuple[str, tuple[str, ...]] = ("trt", ("87",)),
    ) -> Outcome:
        rows, out = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["S", 8]) for name in ("rows", "out"))
        graph = helper.make_graph([helper.make_node(operator, ["rows"], ["out"])], "one", [rows], [out])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        onnx.save(model, tmp_path / "a.onnx")
        profile = Profile("all", {"rows": Range((least, 8), (2, 8), (4, 8))})
        files = [str(tmp_path / file) for file in ("a.onnx", "a.plan", "timing.cache")]
        job = Job(*platform, files[0], files[1], files[2], (profile,), settings or BuilderSettings())
        (tmp_path / JOB).write_text(to_json(job))
        failed = serve(Job, worker.build, tmp_path)
        assert (tmp_path / "a.plan").exists() == (not failed)
        if failed:
            return Outcome((), (tmp_path / ERROR).read_text())
        return Outcome(read_json(Result, tmp_path / RESULT, BadEngine).warnings, "")

    return one


def test_the_builder_gets_the_settings(run: Run, tmp_path: Path) -> None:
    """Also TF32 is disabled and layer names are detailed."""
    run(settings=BuilderSettings(7, 2, 1))
    plan = importlib.import_module("tensorrt._plan").Plan.unpack((tmp_path / "a.plan").read_bytes())
    assert plan.config == {"level": 2, "aux_streams": 1, "workspace": 7 * 1024**2, "tf32": 0}
    assert plan.verbosity == int(importlib.import_module("tensorrt").ProfilingVerbosity.DETAILED)


def test_a_timing_cache_of_another_gpu_is_replaced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_GPU", "Thor")
    run()
    monkeypatch.setenv("SIMULATED_GPU", "Orin")
    (tmp_path / "a.plan").unlink()
    assert "timing.cache is damaged or from another device; it was replaced" in run().warnings[0]
    assert run().warnings == ()


def test_a_damaged_timing_cache_is_not_reported_as_the_reason(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "timing.cache").write_bytes(b"damaged")
    monkeypatch.setenv("SIMULATED_OUT_OF_MEMORY", "a.onnx")
    assert run().error.startswith("TensorRT could not build it: ") and "timing cache" not in run().error
    assert "--masked-past" not in run().error and "--masked-past" in run(least=0).error


def test_a_changed_profile_is_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_CLAMPS_EMPTY", "1")
    error = run(least=0).error
    assert "has the minimum (1, 8) for 'rows' in its profile 'all' instead of (0, 8)" in error
    assert "build with --masked-past" in error


def test_an_operator_that_the_parser_does_not_have(run: Run) -> None:
    assert "No importer registered for op: Unique" in run(operator="Unique").error


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_errors_of_the_bindings_are_the_reason(
    kind: type[Exception], run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(job: Job) -> Result:
        raise kind("CUDA initialization failure\nwith error: 35")

    monkeypatch.setattr(worker, "build", fails)
    assert run().error == "CUDA initialization failure with error: 35"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("capabilities", [("75", "120"), DEFAULT])
def test_a_build_for_compute_capabilities_needs_no_gpu(
    capabilities: tuple[str, ...], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIMULATED_DEVICES", "0")
    settings = BuilderSettings(7, max_aux_streams=1)
    assert run(settings=settings, platform=("rtx", capabilities)).error == ""
    assert not (tmp_path / "timing.cache").exists()
    plan = importlib.import_module("tensorrt._plan").Plan.unpack((tmp_path / "a.plan").read_bytes())
    assert plan.config == {"aux_streams": 1, "workspace": 7 * 1024**2, "tf32": 0, "user_allocation": 1}
    assert (plan.version, plan.gpu, plan.sm) == ("1.7.1.116", "", ",".join(capabilities))


def test_a_builder_that_cannot_be_created(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_DEVICES", "0")
    assert run().error == "pybind11::init(): factory function returned nullptr"
