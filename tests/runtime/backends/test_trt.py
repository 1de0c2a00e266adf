# SPDX-License-Identifier: Apache-2.0
"""Backend trt on the simulated device gives the answers of backend ort, and refuses what it cannot run."""

from __future__ import annotations

import importlib
import importlib.util
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.demo.scenes import samples
from secateur.engines.device import this_device
from secateur.engines.manifest import ENGINES, Limits
from secateur.errors import BadPrompt, InputError, SecateurError
from secateur.export.bundle import Exported
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends.trt import Backend

QUESTIONS = ("what color is the seven ?", "red ?", "three left of the blue and green")


@pytest.fixture
def trt(engines_path: Path) -> Iterator[Pipeline]:
    with Pipeline.load(engines_path, backend="trt", verify=False) as pipeline:
        yield pipeline


def same(got: Any, want: Any) -> None:
    assert got.tokens == want.tokens and got.kept == want.kept
    np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none", "all"])
def test_answers_equal_those_of_backend_ort(schedule: str, trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    for seed, question in enumerate(QUESTIONS):
        options: Any = {"schedule": schedule, "max_new_tokens": 12}
        same(trt.ask(picture(seed), question, **options), vlm.ask(picture(seed), question, **options))


def test_a_batch(trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    images, questions = [picture(0), picture(1)], list(QUESTIONS[:2])
    answers = [p.ask(images, questions, schedule="prune", max_new_tokens=9) for p in (trt, vlm)]
    for got, want in zip(*answers, strict=True):
        same(got, want)


@pytest.mark.parametrize("schedule", ["full", "prune"])
def test_two_alternating_conversations(schedule: str, trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    chats = [[pipeline.open(picture(seed), schedule=schedule) for seed in range(2)] for pipeline in (trt, vlm)]
    for question in QUESTIONS:
        for got, want in zip(*chats, strict=True):
            same(got.ask(question, max_new_tokens=7), want.ask(question, max_new_tokens=7))


def test_a_decode_step_is_one_launch(trt: Pipeline, picture: Any, simulated: Any) -> None:
    trt.ask(picture(0), QUESTIONS[1], schedule="prune", max_new_tokens=2)
    simulated.reset()
    answer = trt.ask(picture(0), QUESTIONS[0], schedule="prune", max_new_tokens=8)
    assert len(answer.tokens) == 8
    assert simulated.captures <= 1 and simulated.launches >= 6, "of 7 steps, at most the first is not replayed"


@pytest.mark.parametrize("schedule", ["prune", "early"])
def test_the_new_rows_of_a_step_are_one_copy_for_each_segment(
    schedule: str, trt: Pipeline, picture: Any, simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cudart = importlib.import_module("cuda.bindings.runtime")
    moved: list[int] = []
    """Rows of each copy on the device; replayed copies are not counted."""

    def noted(name: str, kind: int, rows: int | None) -> None:
        working = getattr(cudart, name)

        def copy(*arguments: Any) -> Any:
            if arguments[kind] == cudart.cudaMemcpyKind.cudaMemcpyDeviceToDevice:
                moved.append(1 if rows is None else arguments[rows])
            return working(*arguments)

        monkeypatch.setattr(cudart, name, copy)

    noted("cudaMemcpyAsync", 3, None)
    noted("cudaMemcpy2DAsync", 6, 5)
    asked = []
    for tokens in (7, 7, 8):  # the first one records the step
        moved.clear()
        assert len(trt.ask(picture(0), QUESTIONS[0], schedule, max_new_tokens=tokens).tokens) == tokens
        asked.append(list(moved))
    layers = [len(range(*segment.layers)) for segment in trt.bundle.manifest.segments if segment.layers]
    assert asked[2] == asked[1] + [2 * count for count in layers]


def test_every_stage_has_its_time(trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    for new_tokens in (1, 4):
        answers = [p.ask(picture(0), QUESTIONS[0], schedule="prune", max_new_tokens=new_tokens) for p in (trt, vlm)]
        assert answers[0].timings.keys() == answers[1].timings.keys()
        assert all(answers[0].timings[stage] > 0 for stage in ("encode", "vision", "prefill", "segment_0", "prune.1"))


def test_the_host_does_not_wait_between_stages(trt: Pipeline, picture: Any, simulated: Any) -> None:
    for schedule in ("full", "prune"):
        trt.ask(picture(0), QUESTIONS[1], schedule=schedule, max_new_tokens=1)
        simulated.reset()
        trt.ask(picture(1), QUESTIONS[1], schedule=schedule, max_new_tokens=1)
        # one for the logits, one for each gate's kept tokens, and one for the clock
        assert simulated.executions > 5 and simulated.syncs <= 4
        simulated.reset()
    steps = 5
    trt.ask(picture(0), QUESTIONS[0], schedule="prune", max_new_tokens=1 + steps)
    assert simulated.syncs <= 4 + steps


def test_a_masked_first_row(simulated: Any, rebuild: Callable[..., Path], vlm: Pipeline, picture: Any) -> None:
    """For a TensorRT that refuses an empty past."""
    with Pipeline.load(rebuild(past=1), backend="trt", verify=False) as trt:
        assert trt._backend.masked_past == 1
        for schedule in ("full", "prune"):
            options: Any = {"schedule": schedule, "max_new_tokens": 10}
            same(*(p.ask(picture(3), QUESTIONS[0], **options) for p in (trt, vlm)))


def test_tensorrt_11(
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    rebuild: Callable[..., Path],
    vlm: Pipeline,
    picture: Any,
) -> None:
    monkeypatch.setenv("SIMULATED_TENSORRT_VERSION", "11.1.0.106")
    request.getfixturevalue("simulated")  # reads the version
    root = rebuild()
    assert next((root / ENGINES).iterdir()).name == "orin-sm8.7-16mp-trt11.1.0.106"
    with Pipeline.load(root, backend="trt", verify=False) as trt:
        same(*(p.ask(picture(0), QUESTIONS[0], "prune", max_new_tokens=6) for p in (trt, vlm)))


def test_the_device_is_described(trt: Pipeline) -> None:
    device, found = this_device(), trt.describe()
    version = importlib.import_module("tensorrt").__version__
    assert found["GPU"] == f"{device.gpu}, SM {device.sm}" and found["TensorRT"] == version
    assert found["CUDA"] == device.cuda and found["driver"] == f"CUDA {device.driver}"


def test_a_question_that_is_too_long(trt: Pipeline, picture: Any) -> None:
    with pytest.raises(InputError, match="the engines take at most .*--max-text"):
        trt.ask(picture(0), "red " * 60, "full", max_new_tokens=4)
    with pytest.raises(BadPrompt, match="room in the cache"):
        trt.ask(picture(0), "red ?", "full", max_new_tokens=90)
    assert trt.ask(picture(0), "red ?", "full", max_new_tokens=4).tokens


def test_tensorrt_refuses_a_profile(engines_path: Path, simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exception of the bindings has no text; the message comes from the error recorder."""
    context = importlib.import_module("tensorrt").IExecutionContext
    working = context.set_optimization_profile_async
    monkeypatch.setattr(context, "set_optimization_profile_async", lambda self, _, stream: working(self, 9, stream))
    with pytest.raises(SecateurError, match="TensorRT refuses the profile '.*': .*there is no profile 9"):
        Pipeline.load(engines_path, backend="trt", verify=False)


def test_limits_of_the_cache(simulated: Any, rebuild: Callable[..., Path]) -> None:
    backend = Backend(Bundle.load(rebuild(Limits(1, 10, 6)), verify=False))
    assert (backend.most_rows, backend.masked_past, backend.fixed_shapes) == (2 + 9 + 10 + 6, 0, True)
    backend.close()


@pytest.fixture
def exported(
    trt_bundle: tuple[Path, Exported], tmp_path: Path, simulated: Any, build_engines: Callable[..., Path]
) -> Path:
    """A bundle of fp16 graphs that export made for TensorRT, with engines."""
    root = tmp_path / "bundle"
    shutil.copytree(trt_bundle[0], root)
    build_engines(root)
    return root


def test_answers_of_exported_graphs_equal_those_of_backend_ort(exported: Path, simulated: Any) -> None:
    """The simulation uses ONNX Runtime's kernels, so the results are equal bit by bit."""
    image = next(iter(samples("calibration", 1, 0))).image
    with Pipeline.load(exported, backend="trt") as trt, Pipeline.load(exported, threads=1) as ort:
        assert len(trt.schedules) > 4
        for schedule in trt.schedules:
            simulated.reset()
            got, want = (p.ask(image, "w1 w2 w3", schedule, max_new_tokens=6) for p in (trt, ort))
            assert got.tokens == want.tokens and got.kept == want.kept, schedule
            assert np.array_equal(got.first_logits, want.first_logits), schedule
            assert simulated.launches >= len(got.tokens) - 2
            chats = [pipeline.open(image, schedule) for pipeline in (trt, ort)]
            for question in ("w4 w5", "w6"):
                a, b = (chat.ask(question, max_new_tokens=4) for chat in chats)
                assert a.tokens == b.tokens, schedule


@pytest.mark.trt
@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
def test_on_a_real_device(rebuild: Callable[..., Path], vlm: Pipeline, picture: Any) -> None:
    with Pipeline.load(rebuild(), backend="trt", verify=False) as real:
        for schedule in ("full", "prune"):
            got, want = (p.ask(picture(0), QUESTIONS[0], schedule, max_new_tokens=8) for p in (real, vlm))
            assert got.kept == want.kept
            np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-2, atol=1e-2)
