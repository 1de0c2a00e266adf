# SPDX-License-Identifier: Apache-2.0
"""Buffers are bound by address, so wrong buffers must be refused before a run."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import SecateurError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends.ort import Backend, HostBuffer
from tests.runtime.backends.buffers import check_rows_are_written_into_a_view, segment


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.load(bundle_path)


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Backend:
    made = Backend(bundle, threads=1)
    for graph in bundle.manifest.graphs:
        made.load(graph)
    return made


@pytest.mark.parametrize("past", [0, 1, 5])
def test_rows_are_written_into_a_view(backend: Backend, past: int) -> None:
    check_rows_are_written_into_a_view(backend, past)


WRONG = {
    "no input": (lambda i, o: i.pop("last_index"), "segment_0' takes .*last_index"),
    "more inputs": (lambda i, o: i.update(extra=i["last_index"]), "got .*extra"),
    "no output": (lambda i, o: o.pop("query"), "takes .*query"),
    "dtype": (lambda i, o: i.update(position_ids=HostBuffer(np.zeros((2, 3), np.int32))), "int32, not int64"),
    "output dtype": (lambda i, o: o.update(query=HostBuffer(np.zeros((2, 4, 4)))), "float64, not float32"),
    "gaps": (lambda i, o: i.update(hidden_states=HostBuffer(np.zeros((2, 6, 16), "f4")[:, ::2])), "not a contiguous"),
    "output gaps": (lambda i, o: o.update(query=HostBuffer(np.zeros((4, 4, 2), "f4").T)), "not a contiguous"),
    "array": (lambda i, o: i.update(last_index=np.zeros(2, np.int64)), "buffer of this backend"),
    "batch": (lambda i, o: i.update(last_index=HostBuffer(np.zeros(3, np.int64))), "'B' must be 2"),
    "rows": (lambda i, o: i.update(position_ids=HostBuffer(np.zeros((2, 4), np.int64))), "'S' must be 3"),
    "mask": (lambda i, o: i.update(attention_mask=HostBuffer(np.ones((2, 4), np.int64))), "'P\\+S' must be 5"),
    "width": (lambda i, o: i.update(hidden_states=HostBuffer(np.zeros((2, 3, 15), "f4"))), "'16' must be 16"),
    "short output": (lambda i, o: o.update({"new_key.0": HostBuffer(np.zeros((2, 2, 2, 4), "f4"))}), "new_key.0 needs"),
    "long output": (lambda i, o: o.update({"new_key.0": HostBuffer(np.zeros((4, 2, 2, 4), "f4"))}), "new_key.0 needs"),
    "rank": (lambda i, o: o.update(query=HostBuffer(np.zeros((2, 16), "f4"))), "query needs the shape"),
}


@pytest.mark.parametrize(("spoil", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_buffers(backend: Backend, spoil: Any, message: str) -> None:
    inputs, outputs = segment(backend)
    spoil(inputs, outputs)
    with pytest.raises(ValueError, match=message):
        backend.run("segment_0", inputs, outputs)
    assert not any(o.numpy().any() for o in outputs.values())
    inputs, outputs = segment(backend)
    backend.run("segment_0", inputs, outputs)
    assert all(o.numpy().any() for o in outputs.values())


def test_onnx_runtime_refuses_an_output_of_another_size(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without our check, ONNX Runtime itself refuses an output buffer of the wrong size."""
    monkeypatch.setattr("secateur.runtime.backends.ort.check_buffers", lambda *_: None)
    inputs, outputs = segment(backend)
    outputs["new_key.0"] = HostBuffer(np.zeros((2, 2, 2, 4), np.float32))
    with pytest.raises(SecateurError, match="'segment_0' failed in ONNX Runtime: "):
        backend.run("segment_0", inputs, outputs)


def test_a_view_shares_the_memory(backend: Backend) -> None:
    whole: Any = backend.allocate((4, 3), np.int64)
    part = whole.view(slice(1, 3))
    part.write(np.ones((2, 3), np.int64))
    part.view(slice(1, 2), slice(0, 2)).write(HostBuffer(np.full((1, 2), 7)))
    assert whole.numpy().tolist() == [[0, 0, 0], [1, 1, 1], [7, 7, 1], [0, 0, 0]]
    assert part.contiguous and part.address == whole.address + 24
    assert not whole.view(slice(None), slice(0, 2)).contiguous
    for wrong in (np.ones((2, 2), np.int64), np.ones((2, 3), np.float32), np.ones(3, np.int64)):
        with pytest.raises(ValueError, match="cannot write"):
            part.write(wrong)
    assert whole.view(slice(1, None, 2)).numpy().tolist() == [[1, 1, 1], [0, 0, 0]]
    assert not whole.view(slice(1, None, 2)).contiguous
    with pytest.raises(ValueError, match="step 1"):
        whole.view(slice(0, 4), slice(0, 3, 2))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5))
def test_bindings_are_not_mixed_up_between_runs(backend: Backend, shapes: list[tuple[int, int, int]]) -> None:
    for past, rows, batch in shapes:
        inputs, outputs = segment(backend, rows, past, batch)
        backend.run("segment_0", inputs, outputs)
        flat = inputs["hidden_states"].numpy()
        assert not np.array_equal(outputs["hidden_states.out"].numpy(), flat)
        again = {name: HostBuffer(np.zeros_like(o.numpy())) for name, o in outputs.items()}
        backend.run("segment_0", inputs, again)
        assert all(np.array_equal(o.numpy(), again[name].numpy()) for name, o in outputs.items())


def test_sessions_opened_for_each_run(bundle: Bundle, vlm: Pipeline) -> None:
    image = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    want = vlm.ask(image, "red ?", schedule="prune", max_new_tokens=4)
    with Pipeline(bundle, Backend(bundle, threads=1, resident=False)) as pipeline:
        got = pipeline.ask(image, "red ?", schedule="prune", max_new_tokens=4)
    assert got.tokens == want.tokens and np.array_equal(got.first_logits, want.first_logits)


def test_the_cpu_has_no_description(vlm: Pipeline) -> None:
    assert vlm.describe() == {}


def test_a_graph_that_is_not_loaded(bundle: Bundle) -> None:
    with pytest.raises(SecateurError, match="'vision' is not loaded"):
        Backend(bundle).run("vision", {}, {})


def test_the_address_is_that_of_the_data() -> None:
    buffer = HostBuffer(np.array([41, 42]))
    assert ctypes.c_int64.from_address(buffer.view(slice(1, 2)).address).value == 42
