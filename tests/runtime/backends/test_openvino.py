# SPDX-License-Identifier: Apache-2.0
"""Backend openvino: answers as by ort, tensors in place, devices and their refusals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import InputError, SecateurError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends.openvino import Backend
from tests.runtime.backends.answers import check_same_answers
from tests.runtime.backends.buffers import check_rows_are_written_into_a_view, segment


@pytest.fixture(autouse=True, scope="module")
def library() -> Any:
    return pytest.importorskip("openvino", reason="openvino is not installed")


@pytest.fixture(scope="module")
def bundle(bundle_path: Path) -> Bundle:
    return Bundle.load(bundle_path, verify=False)


@pytest.fixture(scope="module")
def backend(bundle: Bundle) -> Backend:
    made = Backend(bundle, threads=1)
    for graph in bundle.manifest.graphs:
        made.load(graph)
    return made


@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none"])
def test_answers_equal_those_of_ort(schedule: str, bundle: Bundle, vlm: Pipeline, picture: Any) -> None:
    with Pipeline(bundle, Backend(bundle, threads=1)) as pipeline:
        check_same_answers(pipeline, vlm, schedule, picture, 1e-4)


@pytest.mark.parametrize("past", [0, 1, 5])
def test_rows_are_written_into_a_view(backend: Backend, past: int) -> None:
    check_rows_are_written_into_a_view(backend, past)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=5))
def test_tensors_are_not_mixed_up_between_runs(backend: Backend, shapes: list[tuple[int, int, int]]) -> None:
    for past, rows, batch in shapes:
        inputs, outputs = segment(backend, rows, past, batch)
        backend.run("segment_0", inputs, outputs)
        assert not np.array_equal(outputs["hidden_states.out"].numpy(), inputs["hidden_states"].numpy())
        again = {name: backend.allocate(o.shape, o.dtype) for name, o in outputs.items()}
        backend.run("segment_0", inputs, again)
        assert all(np.array_equal(o.numpy(), again[name].numpy()) for name, o in outputs.items())


def test_only_changed_tensors_are_set(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    made = backend._tensor
    counted: list[tuple[int, ...]] = []

    def tensor(array: Any) -> Any:
        counted.append(array.shape)
        return made(array)

    monkeypatch.setattr(backend, "_tensor", tensor)
    inputs, outputs = segment(backend)
    backend.run("segment_0", inputs, outputs)
    assert counted
    counted.clear()
    backend.run("segment_0", inputs, outputs)
    assert not counted
    before = outputs["query"].numpy().copy()
    inputs["last_index"].write(np.zeros(2, np.int64))
    backend.run("segment_0", inputs, outputs)
    assert not counted and not np.array_equal(outputs["query"].numpy(), before)
    backend.run("segment_0", inputs, outputs | {"query": backend.allocate((2, 4, 4), np.float32)})
    assert counted == [(2, 4, 4)]


def test_wrong_buffers(backend: Backend, bundle: Bundle) -> None:
    inputs, outputs = segment(backend)
    with pytest.raises(InputError, match="'P\\+S' must be 5"):
        backend.run("segment_0", inputs | {"attention_mask": backend.allocate((2, 4), np.int64)}, outputs)
    with pytest.raises(SecateurError, match="'vision' is not loaded"):
        Backend(bundle).run("vision", {}, {})


def test_a_closed_backend(bundle: Bundle) -> None:
    backend = Backend(bundle, threads=1)
    backend.load(bundle.manifest.graphs[0])
    backend.close()
    backend.close()
    with pytest.raises(SecateurError, match="not loaded, or the backend was closed"):
        backend.run(bundle.manifest.graphs[0].name, {}, {})


@pytest.mark.parametrize("device", ["npu", "cuda", "CPU", ""])
def test_an_unavailable_device_is_refused(bundle_path: Path, device: str, library: Any) -> None:
    if device.upper() in {name.partition(".")[0] for name in library.Core().available_devices} - {"CPU"}:
        pytest.skip(f"this machine has the device {device}")
    with pytest.raises(InputError, match=f"'openvino' finds no device '{device}' here; choose one of: .*cpu"):
        Pipeline.load(bundle_path, backend="openvino", device=device, verify=False)


def test_devices_are_numbered(bundle: Bundle, monkeypatch: pytest.MonkeyPatch, library: Any) -> None:
    capable = {"CPU": ["FP32"], "GPU": ["FP32", "FP16"], "GPU.1": ["FP32", "BF16"]}
    core = SimpleNamespace(
        available_devices=["CPU", "GPU.0", "GPU.1"],
        get_property=lambda device, name: capable[device] if name == "OPTIMIZATION_CAPABILITIES" else f"the {device}",
    )
    monkeypatch.setattr(library, "Core", lambda: core)
    assert Backend(bundle, device="gpu").describe()["device"] == "the GPU"
    assert Backend(bundle, device="gpu.1", bf16=True).describe()["device"] == "the GPU.1"
    with pytest.raises(InputError, match=r"no device 'gpu.2' here; choose one of: cpu, gpu.0, gpu.1"):
        Backend(bundle, device="gpu.2")
    with pytest.raises(InputError, match="the device 'cpu' has no bf16; leave bf16 out"):
        Backend(bundle, bf16=True)


def test_bf16(bundle: Bundle, vlm: Pipeline, picture: Any, library: Any) -> None:
    if "BF16" not in library.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no bf16")
    want = vlm.ask(picture(0), "red ?", "full").first_logits
    with Pipeline(bundle, Backend(bundle, threads=1, bf16=True)) as pipeline:
        got = pipeline.ask(picture(0), "red ?", "full").first_logits
    assert 0 < np.abs(got - want).max() < 0.1 * np.abs(want).max()


def test_the_cpu_has_no_description(backend: Backend) -> None:
    assert backend.describe() == {}


def test_changed_files_are_found(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[bool] = []
    monkeypatch.setattr(Bundle, "check_unchanged", lambda self: called.append(True))
    Backend(bundle).check_files()
    assert called
