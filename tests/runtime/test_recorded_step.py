# SPDX-License-Identifier: Apache-2.0
"""Decode steps of fixed shapes, and a past with masked rows, give the answers of the plain chain."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from secateur.errors import BadPrompt, InputError, SecateurError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends import base, ort

Picture = Callable[[int], NDArray[np.uint8]]
SCHEDULES = ("full", "prune", "early", "none", "all")
QUESTION = "what color is the seven ?"


class Fixed(ort.Backend):
    """ONNX Runtime on the CPU with fixed decode steps; lists the runs of every step."""

    fixed_shapes: ClassVar[bool] = True

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle, threads=1)
        self.steps: list[tuple[object, list[tuple[Any, ...]]]] = []
        self._runs: list[tuple[Any, ...]] | None = None

    def repeat(self, key: Any, step: Callable[[], None]) -> None:
        self._runs = []
        step()
        self.steps.append((key, self._runs))
        self._runs = None

    def run(self, graph: str, inputs: Any, outputs: Any) -> None:
        if self._runs is not None:
            buffers = {**inputs, **outputs}
            self._runs.append((graph, *((n, b.address, b.shape) for n, b in sorted(buffers.items()))))
        super().run(graph, inputs, outputs)

    def allocate(self, shape: tuple[int, ...], dtype: Any) -> base.Buffer:
        assert self._runs is None, "a recorded step must not allocate"
        return super().allocate(shape, dtype)


@pytest.fixture
def fixed(bundle_path: Path) -> Iterator[Pipeline]:
    bundle = Bundle.load(bundle_path)
    with Pipeline(bundle, Fixed(bundle)) as pipeline:
        yield pipeline


def backend(pipeline: Pipeline) -> Fixed:
    found = pipeline._backend
    assert isinstance(found, Fixed)
    return found


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("batch", [1, 2])
def test_fixed_steps_give_the_same_answers(
    vlm: Pipeline, fixed: Pipeline, picture: Picture, schedule: str, batch: int
) -> None:
    images = [picture(seed) for seed in range(batch)]
    prompts = [QUESTION, "where is the red three ?"][:batch]
    expected = vlm.ask(images, prompts, schedule=schedule, max_new_tokens=9)
    found = fixed.ask(images, prompts, schedule=schedule, max_new_tokens=9)
    assert [a.tokens for a in found] == [a.tokens for a in expected]
    assert [a.kept for a in found] == [a.kept for a in expected]
    assert len(backend(fixed).steps) == max(len(a.tokens) for a in found) - 1 > 0


def test_every_step_of_a_conversation_has_the_same_addresses(fixed: Pipeline, picture: Picture) -> None:
    for seed in range(2):  # the second question reuses the buffers of the first
        fixed.ask(picture(seed), QUESTION, schedule="prune", max_new_tokens=6)
    keys, runs = zip(*backend(fixed).steps, strict=True)
    assert len(runs) > 4 and len(set(keys)) == 1 and all(run == runs[0] for run in runs)
    assert [run[0] for run in runs[0]] == ["embed", "segment_0", "segment_1", "segment_2"]


def test_a_reused_cache_has_no_rows_of_its_last_conversation(vlm: Pipeline, fixed: Pipeline, picture: Picture) -> None:
    for seed in range(3):
        expected = vlm.ask(picture(seed), QUESTION, schedule="prune", max_new_tokens=6)
        assert fixed.ask(picture(seed), QUESTION, schedule="prune", max_new_tokens=6).tokens == expected.tokens


def test_follow_up_questions_and_steps_share_the_cache(vlm: Pipeline, fixed: Pipeline, picture: Picture) -> None:
    ours, theirs = (p.open(picture(5), schedule="prune", capacity=100) for p in (fixed, vlm))
    for question in (QUESTION, "and of the three ?"):
        assert ours.ask(question, max_new_tokens=5).tokens == theirs.ask(question, max_new_tokens=5).tokens


class Masked(ort.Backend):
    """Like a TensorRT that refuses a past without rows."""

    masked_past = 1

    def run(self, graph: str, inputs: Any, outputs: Any) -> None:
        assert all(0 not in buffer.shape for name, buffer in inputs.items() if name.startswith("past_"))
        super().run(graph, inputs, outputs)


class MaskedFixed(Masked, Fixed):
    pass


@pytest.mark.parametrize("kind", [Masked, MaskedFixed])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_masked_past_changes_nothing(
    vlm: Pipeline, bundle_path: Path, picture: Picture, schedule: str, kind: type[Masked]
) -> None:
    bundle = Bundle.load(bundle_path)
    with Pipeline(bundle, kind(bundle)) as masked:
        ours, theirs = (p.open(picture(5), schedule=schedule, capacity=100) for p in (masked, vlm))
        for question in (QUESTION, "and of the three ?"):
            found, expected = (chat.ask(question, max_new_tokens=5) for chat in (ours, theirs))
            assert found.tokens == expected.tokens and found.kept == expected.kept
            np.testing.assert_allclose(found.first_logits, expected.first_logits, atol=1e-4)


class Small(Fixed):
    most_rows = 30


def test_a_backend_with_a_maximum_of_rows(bundle_path: Path, picture: Picture) -> None:
    bundle = Bundle.load(bundle_path)
    with Pipeline(bundle, Small(bundle)) as small:
        assert small.ask(picture(1), QUESTION, schedule="full", max_new_tokens=4).tokens
        with pytest.raises(BadPrompt, match="room in the cache"):
            small.ask(picture(1), QUESTION, schedule="full", max_new_tokens=64)
        with pytest.raises(InputError, match="at most 30"):
            small.open(picture(1), schedule="full", capacity=31)
        assert small.open(picture(1), schedule="full").ask(QUESTION, max_new_tokens=4).tokens


class Overflowing(Fixed):
    """Returns NaN logits while `spoiled` is set."""

    spoiled = False

    def run(self, graph: str, inputs: Any, outputs: Any) -> None:
        super().run(graph, inputs, outputs)
        if self.spoiled and "logits" in outputs:
            outputs["logits"].numpy()[:, 3] = np.nan


def test_nan_is_an_error_and_its_cache_is_not_reused(bundle_path: Path, picture: Picture) -> None:
    bundle = Bundle.load(bundle_path)
    with Pipeline(bundle, backend := Overflowing(bundle)) as vlm:
        expected = vlm.ask(picture(1), QUESTION, schedule="prune", max_new_tokens=6)
        backend.spoiled = True
        for tokens in (1, 6):
            with pytest.raises(SecateurError, match="NaN"):
                vlm.ask(picture(1), QUESTION, schedule="prune", max_new_tokens=tokens)
        chat = vlm.open(picture(1), schedule="prune", capacity=64)
        with pytest.raises(SecateurError, match="NaN"):
            chat.ask(QUESTION, max_new_tokens=6)
        chat.close()
        backend.spoiled = False
        assert vlm._sizes.first._spare is None
        assert vlm.ask(picture(1), QUESTION, schedule="prune", max_new_tokens=6).tokens == expected.tokens


def test_the_cache_of_a_stream_or_a_closed_chat_is_reused(fixed: Pipeline, picture: Picture) -> None:
    for seed in range(2):
        assert "".join(fixed.stream(picture(seed), QUESTION, schedule="prune", max_new_tokens=6))
    with_room = fixed.open(picture(3), schedule="prune", capacity=64)
    with_room.ask(QUESTION, max_new_tokens=6)
    with_room.close()
    keys = {key for key, _ in backend(fixed).steps}
    assert len(keys) == 1 and len(backend(fixed).steps) > 4
    with pytest.raises(InputError, match="closed"):
        with_room.ask(QUESTION)


def test_caches_have_rounded_sizes_and_are_reused_only_if_equal(fixed: Pipeline) -> None:
    chain = fixed._sizes.first
    cache = chain.cache(1, 20, "prune")
    assert cache.capacity == (64, 60, 57)
    chain.give_back(cache)
    schedules = chain.manifest.schedules
    original = schedules["prune"]
    schedules["prune"] = replace(original, positions="compact")
    assert chain.cache(1, 30, "prune").shift == (0, 4, 7)
    schedules["prune"] = original
    chain.give_back(cache)
    assert chain.cache(1, 30, "prune") is cache and chain.cache(1, 30, "prune") is not cache


def test_an_old_cache_is_freed_before_a_new_one_is_allocated(fixed: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    chain = fixed._sizes.first
    chain.give_back(chain.cache(1, 20, "prune"))
    old = weakref.ref(chain._spare)
    alive: list[bool] = []
    allocate = fixed._backend.allocate

    def watched(shape: tuple[int, ...], dtype: Any) -> base.Buffer:
        alive.append(old() is not None)
        return allocate(shape, dtype)

    monkeypatch.setattr(fixed._backend, "allocate", watched)
    chain.cache(1, 100, "prune")
    assert alive and not any(alive)
