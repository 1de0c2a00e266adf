# SPDX-License-Identifier: Apache-2.0
"""Buffers on a simulated CUDA stream equal numpy arrays, and their memory is reused and freed."""

from __future__ import annotations

import gc
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.errors import BackendMissing, SecateurError
from secateur.runtime.backends.ort import HostBuffer
from secateur.runtime.backends.torch import TensorBuffer
from secateur.runtime.device import stream as stream_module
from secateur.runtime.device.stream import DeviceBuffer, Stream
from secateur.runtime.device.strides import StridedLayout, copies
from secateur.runtime.receipt import Stopwatch


@pytest.fixture
def stream(simulated: Any) -> Iterator[Stream]:
    made = Stream()
    yield made
    made.close()


def memory() -> Any:
    return importlib.import_module("simulated").device.memory


def uploaded(stream: Stream, array: Any) -> DeviceBuffer:
    buffer = DeviceBuffer.zeros(stream, array.shape, array.dtype)
    buffer.write(array)
    return buffer


@st.composite
def parts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]:
    """Draw a shape, and two parts of it that have the same shape."""
    shape = tuple(draw(st.lists(st.integers(0, 6), min_size=1, max_size=4)))
    first: list[slice] = []
    second: list[slice] = []
    for axis, size in enumerate(shape[: draw(st.integers(0, len(shape)))]):
        length = draw(st.integers(0, size))
        for part in (first, second):
            step = draw(st.integers(1, (size - 1) // (length - 1) if axis == 0 and length > 1 else 1))
            span = (length - 1) * step + 1 if length else 0
            start = draw(st.integers(0, size - span))
            part.append(slice(start, start + span, step))
    return shape, tuple(first), tuple(second)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts(), st.sampled_from(["float16", "float32", "int64", "bool"]))
def test_views_are_those_of_numpy(stream: Stream, drawn: Any, dtype: str) -> None:
    shape, first, second = drawn
    array = np.random.default_rng(0).integers(0, 2, shape).astype(dtype)
    buffer, other = uploaded(stream, array), uploaded(stream, ~array if dtype == "bool" else array + 3)
    want = other.numpy()
    assert buffer.view(*first).contiguous == array[first].flags.c_contiguous
    assert np.array_equal(buffer.view(*first).numpy(), array[first])
    other.view(*second).write(buffer.view(*first))
    want[second] = array[first]
    assert np.array_equal(other.numpy(), want)
    other.view(*first).write(array[second])
    want[first] = array[second]
    assert np.array_equal(other.numpy(), want)


def test_device_buffers_behave_like_host_buffers(stream: Stream) -> None:
    for whole in (DeviceBuffer.zeros(stream, (4, 3), np.int64), HostBuffer(np.zeros((4, 3), np.int64))):
        part = whole.view(slice(1, 3))
        part.write(np.ones((2, 3), np.int64))
        part.view(slice(1, 2), slice(0, 2)).write(np.full((1, 2), 7))
        assert whole.numpy().tolist() == [[0, 0, 0], [1, 1, 1], [7, 7, 1], [0, 0, 0]]
        assert part.contiguous and part.address == whole.address + 24 and part.shape == (2, 3)
        for wrong in (np.ones((2, 2), np.int64), np.ones((2, 3), np.float32), np.ones(3, np.int64)):
            with pytest.raises(ValueError, match="cannot write"):
                part.write(wrong)
    with pytest.raises(TypeError, match="cannot copy a HostBuffer"):
        DeviceBuffer.zeros(stream, (2,), np.int64).write(HostBuffer(np.zeros(2, np.int64)))


def test_all_buffers_support_the_same_slices(stream: Stream) -> None:
    zeros = np.zeros((5, 3), np.int64)
    for whole in (
        DeviceBuffer.zeros(stream, (5, 3), np.int64),
        HostBuffer(zeros),
        TensorBuffer(torch.zeros(5, 3).long()),
    ):
        spread: Any = whole.view(slice(1, None, 3))
        spread.write(np.array([[1, 2, 3], [4, 5, 6]]))
        spread.view(slice(1, 2), slice(0, 2)).write(np.array([[7, 7]]))
        assert whole.numpy().tolist() == [[0] * 3, [1, 2, 3], [0] * 3, [0] * 3, [7, 7, 6]]
        assert spread.numpy().tolist() == [[1, 2, 3], [7, 7, 6]]
        for steps in ((slice(None, None, -1),), (slice(0, 4, 0),), (slice(0, 4), slice(0, 3, 2))):
            with pytest.raises(ValueError, match="slices of step 1; only on the first axis"):
                whole.view(*steps)


@pytest.mark.parametrize(
    ("shape", "part", "count"),
    [
        ((12, 2, 3), (slice(1, None, 4),), 1),
        ((12, 2, 3), (slice(None),), 1),
        ((12, 2, 3), (slice(1, None, 4), slice(1, 2)), 1),
        ((4, 5, 6), (slice(None), slice(None), slice(1, 3)), 1),
        ((4, 5, 6), (slice(None), slice(1, 2), slice(1, 3)), 1),
        ((4, 5, 6), (slice(None), slice(1, 4), slice(1, 3)), 4),
        ((4, 0, 6), (slice(None), slice(None), slice(1, 3)), 0),
    ],
)
def test_equally_spaced_rows_are_one_copy(
    stream: Stream, simulated: Any, shape: tuple[int, ...], part: tuple[slice, ...], count: int
) -> None:
    buffer, array = DeviceBuffer.zeros(stream, shape, np.int64), np.arange(np.prod(shape)).reshape(shape)
    other = DeviceBuffer.zeros(stream, shape, np.int64)
    buffer.view(*part).write(array[part])
    other.view(*part).write(buffer.view(*part))
    assert np.array_equal(other.view(*part).numpy(), array[part])
    assert simulated.copies == 3 * count, "an upload, a copy on the device, and a download"


def test_rows_too_far_apart_for_a_pitch() -> None:
    """CUDA refuses a pitch of 2 GiB."""
    for rows, pitch, heights in ((3, 2**31 - 1, [3]), (3, 2**31, [1, 1, 1]), (1, 2**31, [1])):
        source = StridedLayout(0, (rows, 8), (pitch, 1), 1)
        made = list(copies(StridedLayout.packed(5, (rows, 8), 1), source))
        assert [copy.height for copy in made] == heights
        assert [(copy.target, copy.source) for copy in made] == [(5 + 8 * i, pitch * i) for i in range(len(heights))]
        assert all(copy.width == 8 and max(copy.target_pitch, copy.source_pitch) < 2**31 for copy in made)


def test_only_reading_the_array_waits(stream: Stream, simulated: Any) -> None:
    array = np.arange(6, dtype=np.float32)
    buffer, copy = uploaded(stream, array), DeviceBuffer.zeros(stream, (6,), np.float32)
    array[:] = -1  # the caller may change the array after the write
    copy.write(buffer)
    assert simulated.syncs == 0
    taken = copy.numpy()
    assert simulated.syncs == 1 and taken.tolist() == [0, 1, 2, 3, 4, 5]
    copy.write(np.zeros(6, np.float32))
    copy.numpy()
    assert taken.tolist() == [0, 1, 2, 3, 4, 5], "the array must not share memory"


def test_uploads_use_a_limited_amount_of_pinned_memory(
    stream: Stream, simulated: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "STAGED", 3 * 4096)
    buffers = [uploaded(stream, np.full(1024, i, np.float32)) for i in range(16)]
    assert 0 < simulated.syncs < 8
    assert memory().used("pinned") <= 5 * 4096
    assert [buffer.numpy()[0] for buffer in buffers] == list(range(16))


def test_memory_is_reused_without_waiting(stream: Stream, simulated: Any) -> None:
    first = uploaded(stream, np.ones(100, np.float32))
    view = first.view(slice(0, 3))
    address, keep = first.address, DeviceBuffer.zeros(stream, (3,), np.float32)
    del first
    assert DeviceBuffer.zeros(stream, (100,), np.float32).address != address, "a view still uses the memory"
    keep.write(view)
    del view
    again = DeviceBuffer.zeros(stream, (100,), np.float32)
    assert simulated.syncs == 0
    assert not again.numpy().any() and keep.numpy().tolist() == [1, 1, 1]
    assert simulated.allocations == 3


def test_empty_buffers_have_an_address(stream: Stream) -> None:
    empty = DeviceBuffer.zeros(stream, (0, 2), np.float16)
    assert empty.address and empty.contiguous and empty.numpy().shape == (0, 2)
    assert DeviceBuffer.zeros(stream, (3,), np.float16).address % 256 == 0


def test_idle_memory_is_freed(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "IDLE", 10_000)
    for size in (1000, 2000, 3000):
        uploaded(stream, np.zeros(size, np.float32))
    gc.collect()
    before = memory().used("device")
    stream.synchronize()
    assert before > 20_000 and memory().used("device") == 0


def test_idle_memory_is_freed_before_an_allocation_fails(monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    monkeypatch.setenv("SIMULATED_DEVICE_MEMORY", str(3 << 20))
    stream = Stream()
    kept = DeviceBuffer.zeros(stream, (1 << 20,), np.uint8)
    DeviceBuffer.zeros(stream, (1 << 19,), np.uint8)
    gc.collect()
    assert DeviceBuffer.zeros(stream, (2 << 20,), np.uint8).shape == (2 << 20,)
    with pytest.raises(SecateurError, match="cudaErrorMemoryAllocation; use a smaller batch"):
        DeviceBuffer.zeros(stream, (3 << 20,), np.uint8)
    assert not kept.numpy().any()
    stream.close()


def test_close_frees_everything(simulated: Any) -> None:
    stream, watch = Stream(), Stopwatch()
    with stream.clock(watch, "upload"):
        buffer = uploaded(stream, np.zeros(10))
    stream.close()
    device = importlib.import_module("simulated").device
    assert not memory().used("device") and not memory().used("pinned")
    assert not device.events and not device.streams and "upload" in watch.milliseconds
    uses = (buffer.numpy, lambda: buffer.write(np.zeros(10)), lambda: buffer.write(buffer), lambda: stream.block(1))
    for use in uses:
        with pytest.raises(SecateurError, match="is closed"):
            use()
    stream.close()


def test_the_clock_is_read_at_synchronization(stream: Stream, simulated: Any) -> None:
    watch = Stopwatch()
    for _ in range(2):
        with stream.clock(watch, "all"), stream.clock(watch, "upload"):
            buffer = uploaded(stream, np.zeros(10))
    assert watch.milliseconds == {} and simulated.syncs == 0
    buffer.numpy()
    assert watch.milliseconds.keys() == {"upload", "all"}
    assert watch.milliseconds["all"] >= watch.milliseconds["upload"] > 0
    with stream.clock(watch, "download"):
        buffer.numpy()
    assert watch.milliseconds["download"] > 0, "the block waited, so its time is known after it"


def test_without_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    with pytest.raises(BackendMissing, match="'cuda-python>=12.6.2,<13' or 'cuda-python>=13,<14'.*--backend ort"):
        Stream()


def test_without_a_device(monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    monkeypatch.setenv("SIMULATED_DEVICES", "0")
    with pytest.raises(BackendMissing, match="found no device .*cudaError.*--backend ort"):
        Stream()


def test_an_old_driver(monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    error = importlib.import_module("cuda.bindings.runtime").cudaError_t.cudaErrorInsufficientDriver
    monkeypatch.setattr("cuda.bindings.runtime.cudaStreamCreateWithFlags", lambda _: (error, None))
    with pytest.raises(BackendMissing, match="InsufficientDriver; install cuda-python of the driver's CUDA: '.*,<13'"):
        Stream()


def test_without_a_driver(monkeypatch: pytest.MonkeyPatch, simulated: Any) -> None:
    def missing(_: int) -> Any:
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr("cuda.bindings.runtime.cudaSetDevice", missing)
    with pytest.raises(BackendMissing, match=r"libcuda\.so\.1"):
        Stream()
