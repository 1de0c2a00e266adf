# SPDX-License-Identifier: Apache-2.0
"""Single runs of backend trt on the simulated device: buffers, profiles, recordings and refusals."""

from __future__ import annotations

import functools
import gc
import importlib
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.errors import InputError, SecateurError
from secateur.runtime import Bundle
from secateur.runtime.backends.trt import Backend
from tests.runtime.backends.buffers import segment


@pytest.fixture
def backend(engines_path: Path) -> Iterator[Backend]:
    """A backend with every graph loaded."""
    bundle = Bundle.load(engines_path, verify=False)
    made = Backend(bundle)
    for graph in bundle.manifest.graphs:
        made.load(graph)
    yield made
    made.close()


@pytest.mark.parametrize(("rows", "past", "batch"), [(13, 0, 2), (3, 2, 2), (1, 20, 1), (1, 7, 2)])
def test_unaligned_rows(backend: Backend, rows: int, past: int, batch: int) -> None:
    """A row of this cache has 64 or 32 bytes, and an address must be a multiple of 256."""
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


def test_a_recorded_step_copies_unaligned_rows(backend: Backend, simulated: Any) -> None:
    """Layers of a small model have unaligned rows in the block of their segment."""
    inputs, outputs = segment(backend, 1, 7, 1)
    block, new = backend.allocate((17, 1, 2, 4), np.float32), backend.allocate((3, 1, 2, 4), np.float32)
    pasts = {"past_key.0": block.view(slice(2, 9)), "past_value.0": block.view(slice(9, 16))}
    rows = {"new_key.0": new.view(slice(1, 2)), "new_value.0": new.view(slice(2, 3))}
    assert all(view.address % 256 for view in (*pasts.values(), *rows.values()))
    rng, wanted = np.random.default_rng(1), []
    contents = [rng.normal(size=(2, 7, 1, 2, 4)).astype(np.float32) for _ in range(4)]
    for key, value in contents:
        inputs["past_key.0"].write(key)
        inputs["past_value.0"].write(value)
        backend.run("segment_0", inputs, outputs)
        wanted.append([outputs[name].numpy().copy() for name in ("hidden_states.out", *rows)])
    step = functools.partial(backend.run, "segment_0", inputs | pasts, outputs | rows)
    for (key, value), (hidden, *kept) in zip(contents, wanted, strict=True):
        block.view(slice(2, 9)).write(key)
        block.view(slice(9, 16)).write(value)
        outputs["hidden_states.out"].write(np.zeros_like(hidden))
        new.write(np.full((3, 1, 2, 4), 5, np.float32))
        backend.repeat(step, step)
        assert np.array_equal(outputs["hidden_states.out"].numpy(), hidden)
        assert np.array_equal(new.numpy(), np.concatenate([np.full((1, 1, 2, 4), 5), *kept]))
    assert (simulated.captures, simulated.launches) == (1, 3)


def test_the_tightest_profile_is_used(backend: Backend) -> None:
    engine = backend._engines["segment_0"]
    for rows, past, name in ((13, 0, "prefill"), (1, 20, "decode"), (3, 20, "prefill"), (1, 0, "prefill")):
        inputs, _ = segment(backend, rows, past)
        assert engine.context({n: b.shape for n, b in inputs.items()}).profile.name == name


def test_all_engines_share_one_block_of_activations(backend: Backend, simulated: Any) -> None:
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


def test_wrong_buffers(backend: Backend) -> None:
    inputs, outputs = segment(backend, 3, 2)
    with pytest.raises(ValueError, match="query is not a contiguous buffer"):
        backend.run("segment_0", inputs, outputs | {"query": np.zeros((2, 4, 4), np.float32)})
    with pytest.raises(ValueError, match="last_index is float32, not int64"):
        backend.run("segment_0", inputs | {"last_index": backend.allocate((2,), np.float32)}, outputs)
    with pytest.raises(SecateurError, match="'segment_9' is not loaded"):
        backend.run("segment_9", inputs, outputs)


def test_contexts_emit_no_profiler_marks(backend: Backend) -> None:
    """The plans have layer names, but a mark for every layer would take time."""
    none = backend._driver.library.trt.ProfilingVerbosity.NONE
    for engine in backend._engines.values():
        assert engine._engine.profiling_verbosity != none
        assert all(context._context.nvtx_verbosity == none for context in engine._contexts)


def test_tensorrt_fails(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    context = importlib.import_module("tensorrt").IExecutionContext
    working = context.execute_async_v3
    monkeypatch.setattr(context, "execute_async_v3", lambda self, _: self._error("the kernel was not found"))
    with pytest.raises(SecateurError, match="'segment_0' failed in TensorRT: .*the kernel was not found"):
        backend.run("segment_0", *segment(backend, 3, 2))
    monkeypatch.setattr(context, "execute_async_v3", working)
    backend.run("segment_0", *segment(backend, 3, 2))


def test_close_frees_everything(backend: Backend) -> None:
    inputs, outputs = segment(backend, 3, 2)
    step = functools.partial(backend.run, "segment_0", inputs, outputs)
    for _ in range(3):
        backend.repeat(step, step)
    contexts = [weakref.ref(context) for engine in backend._engines.values() for context in engine._contexts]
    backend.close()
    gc.collect()
    assert contexts and not any(context() for context in contexts), "a context must be freed before its memory"
    device = importlib.import_module("simulated").device
    assert not device.memory.used("device") and not device.streams and not device.instances
    backend.close()
