# SPDX-License-Identifier: Apache-2.0
"""Backend ort on CUDA: bindings, views, copies and refusals on a simulated device, and runs on a real device."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import onnx
import onnxruntime
import pytest

from secateur.bundle.manifest import GraphSpec, TensorSpec
from secateur.errors import BackendMissing, BadBundle, InputError
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.backends import ort
from secateur.runtime.backends.base import BF16, register_dtype
from secateur.runtime.device.ort_stream import PROVIDER, Cuda
from secateur.runtime.device.stream import DeviceBuffer
from tests.runtime.backends.answers import OPTIONS, check_same_answers


class Simulated(Cuda):
    """ONNX Runtime's CPU provider on the memory of the simulated device, which has host addresses."""

    device = "cpu"

    def __init__(self, ort: ModuleType) -> None:
        super().__init__(SimpleNamespace(get_available_providers=lambda: [PROVIDER], RunOptions=ort.RunOptions))  # type: ignore[arg-type]
        stream = str(self.stream.handle)
        options = {"device_id": "0", "user_compute_stream": stream, "use_tf32": "0"}
        assert self.providers == [(PROVIDER, options)]
        self.providers = ["CPUExecutionProvider"]

    def check(self, session: Any) -> None:
        with pytest.raises(BackendMissing, match="could not load CUDA or cuDNN; pip install 'onnxruntime-gpu"):
            super().check(session)

    def run(self, session: Any, binding: Any) -> None:
        self.stream.synchronize()  # the CPU provider does not use the stream
        super().run(session, binding)


@pytest.fixture
def simulated_ort(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(ort.Backend, "places", {"cpu": ort.Host, "cuda": Simulated})
    return simulated


@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none"])
def test_answers_equal_those_of_the_cpu(
    schedule: str, simulated_ort: Any, bundle_path: Path, vlm: Pipeline, picture: Any
) -> None:
    with Pipeline.load(bundle_path, threads=1, verify=False, device="cuda") as pipeline:
        check_same_answers(pipeline, vlm, schedule, picture)


def test_buffers_are_on_the_device(simulated_ort: Any, bundle_path: Path) -> None:
    backend = ort.Backend(Bundle.load(bundle_path, verify=False), device="cuda")
    graph = next(g for g in backend._bundle.manifest.graphs if g.name == "embed")
    backend.load(graph)
    ids, hidden = backend.allocate((1, 3), np.int64), backend.allocate((1, 3, 16), np.float32)
    assert isinstance(ids, DeviceBuffer)
    ids.write(np.array([[5, 6, 7]]))
    backend.run("embed", {"input_ids": ids}, {"hidden_states": hidden})
    assert hidden.numpy().any()
    with pytest.raises(ValueError, match="not a contiguous buffer of this backend"):
        backend.run("embed", {"input_ids": ort.HostBuffer(np.zeros((1, 3), np.int64))}, {"hidden_states": hidden})
    backend.close()
    backend.close()


def test_the_device_is_described(simulated_ort: Any, bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_GPU", "NVIDIA H200")
    monkeypatch.setenv("SIMULATED_SM", "9.0")
    with Pipeline.load(bundle_path, verify=False, device="cuda") as pipeline:
        assert pipeline.describe() == {"GPU": "NVIDIA H200, SM 9.0", "CUDA": "12.6", "driver": "CUDA 12.6"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_bf16_is_bound_by_its_number(simulated_ort: Any, tmp_path: Path, device: str) -> None:
    """bf16 is not a numpy type, so it is bound by number; the CPU package has kernels for these operators."""
    register_dtype("bf16")
    kind, single = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    made = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Cast", ["x"], ["wide"], to=single),
            onnx.helper.make_node("Add", ["wide", "wide"], ["twice"]),
            onnx.helper.make_node("Cast", ["twice"], ["y"], to=kind),
        ],
        "twice",
        [onnx.helper.make_tensor_value_info("x", kind, ["B", 3])],
        [onnx.helper.make_tensor_value_info("y", kind, ["B", 3])],
    )
    model = onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, tmp_path / "twice.onnx")
    spec = GraphSpec(
        "twice", "gate", "twice.onnx", (TensorSpec("x", BF16, ("B", 3)),), (TensorSpec("y", BF16, ("B", 3)),)
    )
    backend = ort.Backend(cast(Bundle, SimpleNamespace(path=tmp_path.joinpath)), device=device, mapped=False)
    backend.load(spec)
    given, found = backend.allocate((2, 3), BF16), backend.allocate((2, 3), BF16)
    given.write(np.array([[1.5, -2, 1e38], [0, 1e-3, 7]], BF16))
    backend.run("twice", {"x": given}, {"y": found})
    assert found.dtype == np.dtype(BF16) and np.array_equal(found.numpy(), given.numpy() + given.numpy())
    backend.close()
    with pytest.raises(BadBundle, match=r"'y' is tensor\(bfloat16\) .* the manifest says float16"):
        ort.compare(
            spec,
            [TensorSpec("y", "float16", ("B", 3))],
            [SimpleNamespace(name="y", type="tensor(bfloat16)", shape=["B", 3])],
        )


def test_the_libraries_of_pip_are_loaded_first(simulated: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """What ONNX Runtime prints while loading goes to stderr."""
    ort = SimpleNamespace(
        get_available_providers=lambda: [PROVIDER],
        RunOptions=onnxruntime.RunOptions,
        preload_dlls=lambda: print("Failed to load libcudnn.so.9"),
    )
    Cuda(ort).close()  # type: ignore[arg-type]
    out, err = capsys.readouterr()
    assert out == "" and err == "Failed to load libcudnn.so.9\n"
    assert callable(onnxruntime.preload_dlls), "preload_dlls was renamed"


def test_a_package_without_cuda(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendMissing, match=f"has no {PROVIDER}; pip install 'onnxruntime-gpu.*use --device cpu"):
        Pipeline.load(bundle_path, device="cuda", verify=False)


@pytest.mark.parametrize("device", ["tpu", "", "CUDA"])
def test_an_unknown_device_is_refused(bundle_path: Path, device: str) -> None:
    with pytest.raises(InputError, match=f"'ort' runs on cpu or cuda, not on '{device}'"):
        Pipeline.load(bundle_path, device=device, verify=False)
    with pytest.raises(InputError, match=f"'torch' runs on cpu or cuda, not on '{device}'"):
        Pipeline.load(bundle_path, backend="torch", device=device, verify=False)


@pytest.mark.gpu
@pytest.mark.skipif(PROVIDER not in onnxruntime.get_available_providers(), reason="onnxruntime has no CUDA provider")
@pytest.mark.parametrize("schedule", ["full", "prune", "early", "none"])
def test_on_a_real_device(schedule: str, bundle_path: Path, vlm: Pipeline, picture: Any) -> None:
    with Pipeline.load(bundle_path, threads=1, verify=False, device="cuda") as real:
        got, want = (p.ask(picture(0), "what color is the seven ?", schedule, **OPTIONS) for p in (real, vlm))
        assert got.kept == want.kept
        np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=1e-2, atol=1e-2)
