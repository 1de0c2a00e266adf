# SPDX-License-Identifier: Apache-2.0
"""Backend trt on the simulated device answers as backend ort does, and refuses what it cannot run."""

from __future__ import annotations

import functools
import gc
import importlib
import importlib.util
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.engines.manifest import ENGINES, Limits
from secateur.errors import BadPrompt, InputError, SecateurError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends.trt import Backend

QUESTIONS = ("what color is the seven ?", "red ?", "three left of the blue and green")


@pytest.fixture
def trt(engines_path: Path) -> Iterator[Pipeline]:
    with Pipeline.load(engines_path, backend="trt", verify=False) as pipeline:
        yield pipeline


@pytest.fixture
def backend(engines_path: Path) -> Iterator[Backend]:
    """Loaded with every graph."""
    bundle = Bundle.load(engines_path, verify=False)
    made = Backend(bundle)
    for graph in bundle.manifest.graphs:
        made.load(graph)
    yield made
    made.close()


def same(got: Any, want: Any) -> None:
    assert got.tokens == want.tokens and got.kept == want.kept
    np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none", "all"])
def test_answers_of_backend_ort(schedule: str, trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    for seed, question in enumerate(QUESTIONS):
        options: Any = {"schedule": schedule, "max_new_tokens": 12}
        same(trt.ask(picture(seed), question, **options), vlm.ask(picture(seed), question, **options))


def test_a_batch(trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    images, questions = [picture(0), picture(1)], list(QUESTIONS[:2])
    answers = [p.ask(images, questions, schedule="prune", max_new_tokens=9) for p in (trt, vlm)]
    for got, want in zip(*answers, strict=True):
        same(got, want)


@pytest.mark.parametrize("schedule", ["full", "prune"])
def test_two_conversations_by_turns(schedule: str, trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    chats = [[pipeline.open(picture(seed), schedule=schedule) for seed in range(2)] for pipeline in (trt, vlm)]
    for question in QUESTIONS:
        for got, want in zip(*chats, strict=True):
            same(got.ask(question, max_new_tokens=7), want.ask(question, max_new_tokens=7))


def test_a_decode_step_is_one_launch(trt: Pipeline, picture: Any, simulated: Any) -> None:
    trt.ask(picture(0), QUESTIONS[1], schedule="prune", max_new_tokens=2)
    simulated.reset()
    answer = trt.ask(picture(0), QUESTIONS[0], schedule="prune", max_new_tokens=8)
    assert len(answer.tokens) == 8
    assert simulated.captures <= 1 and simulated.launches >= 6, "of 7 steps, at most the first by hand"


def test_every_stage_has_its_time(trt: Pipeline, vlm: Pipeline, picture: Any) -> None:
    for new_tokens in (1, 4):
        answers = [p.ask(picture(0), QUESTIONS[0], schedule="prune", max_new_tokens=new_tokens) for p in (trt, vlm)]
        assert answers[0].timings.keys() == answers[1].timings.keys()
        assert all(answers[0].timings[stage] > 0 for stage in ("encode", "vision", "prefill", "segment_0", "prune.1"))


def test_nothing_waits_between_the_stages(trt: Pipeline, picture: Any, simulated: Any) -> None:
    for schedule in ("full", "prune"):
        trt.ask(picture(0), QUESTIONS[1], schedule=schedule, max_new_tokens=1)
        simulated.reset()
        trt.ask(picture(1), QUESTIONS[1], schedule=schedule, max_new_tokens=1)
        # for the logits and what the gates kept, and for the clock behind it
        assert simulated.executions > 5 and simulated.syncs <= 4
        simulated.reset()
    steps = 5
    trt.ask(picture(0), QUESTIONS[0], schedule="prune", max_new_tokens=1 + steps)
    assert simulated.syncs <= 4 + steps


def test_a_masked_row_in_front(simulated: Any, rebuild: Callable[..., Path], vlm: Pipeline, picture: Any) -> None:
    """Where TensorRT refuses an empty past."""
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
    assert next((root / ENGINES).iterdir()).name == "orin-sm8.7-trt11.1.0.106"
    with Pipeline.load(root, backend="trt", verify=False) as trt:
        same(*(p.ask(picture(0), QUESTIONS[0], "prune", max_new_tokens=6) for p in (trt, vlm)))


def segment(backend: Backend, rows: int, past: int, batch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """Buffers for segment_0 with random contents."""
    rng = np.random.default_rng(0)

    def uploaded(array: Any) -> Any:
        buffer = backend.allocate(array.shape, array.dtype)
        buffer.write(array)
        return buffer

    def filled(*shape: int) -> Any:
        return uploaded(rng.normal(size=shape).astype(np.float32))

    inputs = {
        "hidden_states": filled(batch, rows, 16),
        "position_ids": uploaded(np.arange(past, past + rows)[None].repeat(batch, axis=0)),
        "attention_mask": uploaded(np.ones((batch, past + rows), np.int64)),
        "last_index": uploaded(np.full(batch, rows - 1)),
        "past_key.0": filled(past, batch, 2, 4),
        "past_value.0": filled(past, batch, 2, 4),
    }
    outputs = {name: backend.allocate((rows, batch, 2, 4), np.float32) for name in ("new_key.0", "new_value.0")}
    outputs["hidden_states.out"] = backend.allocate((batch, rows, 16), np.float32)
    outputs |= {name: backend.allocate((batch, 4, 4), np.float32) for name in ("query", "text_query")}
    return inputs, outputs


@pytest.mark.parametrize(("rows", "past", "batch"), [(13, 0, 2), (3, 2, 2), (1, 20, 1), (1, 7, 2)])
def test_rows_that_do_not_lie_as_tensorrt_wants_them(backend: Backend, rows: int, past: int, batch: int) -> None:
    """A row of this cache has 64 bytes or 32, an address must be a multiple of 256."""
    inputs, outputs = segment(backend, rows, past, batch)
    backend.run("segment_0", inputs, outputs)
    cache = backend.allocate((past + rows + 5, batch, 2, 4), np.float32)
    cache.write(np.full(cache.shape, 5, np.float32))
    slot = cache.view(slice(past + 1, past + 1 + rows))
    cache.view(slice(1, past + 1)).write(inputs["past_key.0"])
    moved = inputs | {"past_key.0": cache.view(slice(1, past + 1))}
    backend.run("segment_0", moved, outputs | {"new_key.0": slot})
    array = cache.numpy()
    assert moved["past_key.0"].address % 256
    assert np.array_equal(array[past + 1 : past + 1 + rows], outputs["new_key.0"].numpy())
    assert (array[0] == 5).all() and (array[past + 1 + rows :] == 5).all()


def test_the_tightest_profile_is_used(backend: Backend) -> None:
    engine = backend._engines["segment_0"]
    for rows, past, name in ((13, 0, "prefill"), (1, 20, "decode"), (3, 20, "prefill"), (1, 0, "prefill")):
        inputs, _ = segment(backend, rows, past)
        assert engine.context({n: b.shape for n, b in inputs.items()}).profile.name == name


def test_one_block_of_activations_serves_all(backend: Backend, simulated: Any) -> None:
    needs = [engine.memory for engine in backend._engines.values()]
    for rows, past in ((13, 0), (1, 20)):
        backend.run("segment_0", *segment(backend, rows, past))
    assert backend._activations is not None
    assert max(needs) <= backend._activations.size < max(needs) + 512 < sum(needs)


@pytest.mark.parametrize(
    ("rows", "past", "batch", "message"),
    [
        (61, 0, 1, r"hidden_states is \[1, 61, 16\], its engine takes \[1, 1, 16\] to \[2, 59, 16\].*--max-text"),
        (1, 99, 1, r"past_key\.0 is .* to \[91, 2, 2, 4\].*--max-new-tokens"),
        (1, 4, 3, r"hidden_states is \[3, 1, 16\].*--max-batch"),
    ],
)
def test_more_than_the_engines_were_built_for(backend: Backend, rows: int, past: int, batch: int, message: str) -> None:
    with pytest.raises(InputError, match=f"'segment_0': .*{message}"):
        backend.run("segment_0", *segment(backend, rows, past, batch))


def test_a_question_that_is_too_long(trt: Pipeline, picture: Any) -> None:
    with pytest.raises(InputError, match="the engines take .*--max-text"):
        trt.ask(picture(0), "red " * 60, "full", max_new_tokens=4)
    with pytest.raises(BadPrompt, match="room in the cache"):
        trt.ask(picture(0), "red ?", "full", max_new_tokens=90)
    assert trt.ask(picture(0), "red ?", "full", max_new_tokens=4).tokens


def test_wrong_buffers(backend: Backend) -> None:
    inputs, outputs = segment(backend, 3, 2)
    with pytest.raises(ValueError, match="query is no contiguous buffer"):
        backend.run("segment_0", inputs, outputs | {"query": np.zeros((2, 4, 4), np.float32)})
    with pytest.raises(ValueError, match="last_index is float32, not int64"):
        backend.run("segment_0", inputs | {"last_index": backend.allocate((2,), np.float32)}, outputs)
    with pytest.raises(SecateurError, match="'segment_9' is not loaded"):
        backend.run("segment_9", inputs, outputs)


def test_tensorrt_fails(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    context = importlib.import_module("tensorrt").IExecutionContext
    working = context.execute_async_v3
    monkeypatch.setattr(context, "execute_async_v3", lambda self, _: self._error("the kernel was not found"))
    with pytest.raises(SecateurError, match="'segment_0' failed in TensorRT: .*the kernel was not found"):
        backend.run("segment_0", *segment(backend, 3, 2))
    monkeypatch.setattr(context, "execute_async_v3", working)
    backend.run("segment_0", *segment(backend, 3, 2))


def test_close_gives_everything_back(backend: Backend) -> None:
    inputs, outputs = segment(backend, 3, 2)
    step = functools.partial(backend.run, "segment_0", inputs, outputs)
    for _ in range(3):
        backend.repeat(step, step)
    contexts = [weakref.ref(context) for engine in backend._engines.values() for context in engine._contexts]
    backend.close()
    gc.collect()
    assert contexts and not any(context() for context in contexts), "a context must go before its memory does"
    device = importlib.import_module("simulated").device
    assert not device.memory.used("device") and not device.streams and not device.instances
    backend.close()


def test_what_the_cache_may_have(simulated: Any, rebuild: Callable[..., Path]) -> None:
    backend = Backend(Bundle.load(rebuild(Limits(1, 10, 6)), verify=False))
    assert (backend.most_rows, backend.masked_past, backend.fixed_shapes) == (2 + 9 + 10 + 6, 0, True)
    backend.close()


@pytest.mark.trt
@pytest.mark.gpu
@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is None, reason="TensorRT is not installed")
def test_on_a_real_device(rebuild: Callable[..., Path], vlm: Pipeline, picture: Any) -> None:
    with Pipeline.load(rebuild(), backend="trt", verify=False) as real:
        for schedule in ("full", "prune"):
            got, want = (p.ask(picture(0), QUESTIONS[0], schedule, max_new_tokens=8) for p in (real, vlm))
            assert got.kept == want.kept
            np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-2, atol=1e-2)
