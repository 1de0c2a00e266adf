# SPDX-License-Identifier: Apache-2.0
"""When a step is called, recorded or replayed, and what invalidates a recording."""

from __future__ import annotations

import gc
import importlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from secateur.errors import SecateurError
from secateur.runtime.device.step_graph import StepGraph
from secateur.runtime.device.stream import DeviceBuffer, Stream
from secateur.runtime.receipt import Stopwatch


class Steps:
    """Copies `source` to `target`, like an engine with the context `context`; also the key of the step."""

    def __init__(self, stream: Stream, recorder: StepGraph, context: str = "engine") -> None:
        self.source, self.target = (DeviceBuffer.zeros(stream, (4,), np.float32) for _ in range(2))
        self.recorder, self.context, self.calls, self.changed = recorder, context, 0, False

    def __call__(self) -> None:
        self.calls += 1
        self.recorder.use(self.context, self.changed, (self.source.block, self.target.block))
        self.target.write(self.source)


@pytest.fixture
def stream(simulated: Any) -> Iterator[Stream]:
    made = Stream()
    yield made
    made.close()


@pytest.fixture
def recorder(stream: Stream) -> Iterator[StepGraph]:
    made = StepGraph(stream)
    yield made
    made.clear()


@pytest.fixture
def step(stream: Stream, recorder: StepGraph) -> Steps:
    return Steps(stream, recorder)


def repeat(step: Steps, times: int = 1) -> None:
    """Repeat a step with a new number each time, and check the result."""
    for number in range(times):
        step.source.write(np.full(4, number + 1, np.float32))
        step.target.write(np.zeros(4, np.float32))
        step.recorder.repeat(step, step)
        assert step.target.numpy().tolist() == [number + 1] * 4


def test_the_first_call_runs_the_second_records_and_later_ones_replay(step: Steps, simulated: Any) -> None:
    for calls, captures, launches in ((1, 0, 0), (2, 1, 1), (2, 1, 2), (2, 1, 3)):
        repeat(step)
        assert (step.calls, simulated.captures, simulated.launches) == (calls, captures, launches)


def test_another_key_starts_again(step: Steps, stream: Stream, recorder: StepGraph, simulated: Any) -> None:
    other = Steps(stream, recorder)
    for _ in range(3):
        repeat(step)
        repeat(other)
    assert (step.calls, other.calls, simulated.captures) == (3, 3, 0)
    repeat(step, 3)
    assert (simulated.captures, simulated.launches) == (1, 2)


def test_a_changed_context_invalidates_the_recording(step: Steps, recorder: StepGraph, simulated: Any) -> None:
    repeat(step, 3)
    recorder.use("another engine", True, ())
    recorder.use("engine", False, ())
    repeat(step)
    assert (step.calls, simulated.launches) == (2, 3)
    recorder.use("engine", True, ())
    repeat(step)
    assert (step.calls, simulated.launches) == (3, 3), "not replayed"
    repeat(step, 2)
    assert (step.calls, simulated.captures, simulated.launches) == (4, 2, 5)


def test_freed_memory_invalidates_the_recording(step: Steps, stream: Stream, simulated: Any) -> None:
    repeat(step, 3)
    step.target = DeviceBuffer.zeros(stream, (4,), np.float32)
    gc.collect()
    repeat(step, 3)
    assert (step.calls, simulated.captures) == (4, 2)
    instances = importlib.import_module("simulated").device.instances
    assert len(instances) == 1, "the first graph was destroyed"


def test_the_key_is_not_kept_alive(stream: Stream, recorder: StepGraph) -> None:
    steps = Steps(stream, recorder)
    repeat(steps, 3)
    del steps
    gc.collect()
    stream.synchronize()
    assert not importlib.import_module("simulated").device.instances


@pytest.mark.parametrize("what", ["upload", "wait", "allocate", "change", "library"])
def test_a_step_that_cannot_be_recorded_runs_every_time(
    what: str, step: Steps, stream: Stream, simulated: Any, caplog: pytest.LogCaptureFixture
) -> None:
    actions: dict[str, Callable[[], Any]] = {
        "upload": lambda: step.target.write(np.zeros(4, np.float32)),
        "wait": lambda: step.target.numpy(),
        "allocate": lambda: DeviceBuffer.zeros(stream, (4,), np.float32),
        "change": lambda: step.recorder.use("engine", True, ()),
        "library": lambda: stream.cudart.cudaStreamSynchronize(stream._stream),
    }
    reasons = {
        **dict.fromkeys(("upload", "wait", "allocate"), "may only run graphs"),
        "change": "same buffers every time",
        "library": "cudaErrorStreamCaptureInvalidated",
    }

    def bad() -> None:
        actions[what]()
        step()

    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            step.source.write(np.ones(4, np.float32))
            step.recorder.repeat(step, bad)
            assert step.target.numpy().tolist() == [1] * 4
    assert simulated.launches == 0 and simulated.captures == 1
    (warning,) = caplog.messages
    assert "cannot be recorded as a CUDA graph" in warning and reasons[what] in warning


def test_an_error_of_the_step_is_raised(step: Steps) -> None:
    def bad() -> None:
        raise SecateurError("no such graph")

    for _ in range(3):
        with pytest.raises(SecateurError, match="no such graph"):
            step.recorder.repeat(step, bad)
    repeat(step, 3)


def test_recorded_work_is_not_timed(step: Steps, stream: Stream) -> None:
    watch = Stopwatch()

    def timed() -> None:
        with stream.clock(watch, "step"):
            step()

    for _ in range(4):
        step.recorder.repeat(step, timed)
        step.target.numpy()
    assert watch.milliseconds.keys() == {"step"}
