# SPDX-License-Identifier: Apache-2.0
"""Description of the device of a backend, for a report of measurements."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from secateur.engines.device import this_device
from secateur.runtime import Pipeline
from secateur.runtime.backends import ort
from secateur.runtime.device.ort_stream import PROVIDER, Cuda

GPU = {"GPU": "NVIDIA H200, SM 9.0", "CUDA": "12.6", "driver": "CUDA 12.6"}


@pytest.fixture
def h200(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIMULATED_GPU", "NVIDIA H200")
    monkeypatch.setenv("SIMULATED_SM", "9.0")


def test_onnx_runtime_on_the_cpu(vlm: Pipeline) -> None:
    assert vlm.describe() == {}


class Simulated(Cuda):
    """The CPU provider in the place of the CUDA provider, on a simulated device."""

    def __init__(self, ort: ModuleType) -> None:
        super().__init__(SimpleNamespace(get_available_providers=lambda: [PROVIDER], RunOptions=ort.RunOptions))  # type: ignore[arg-type]
        self.providers = ["CPUExecutionProvider"]

    def check(self, session: Any) -> None:
        pass


def test_onnx_runtime_on_cuda(h200: None, bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort.Backend, "places", {"cpu": ort.Host, "cuda": Simulated})
    with Pipeline.load(bundle_path, verify=False, device="cuda") as pipeline:
        assert pipeline.describe() == GPU


def test_tensorrt(engines_path: Path) -> None:
    device = this_device()
    with Pipeline.load(engines_path, backend="trt", verify=False) as pipeline:
        found = pipeline.describe()
    assert found["GPU"] == f"{device.gpu}, SM {device.sm}" and found["TensorRT"] == device.tensorrt
    assert found["CUDA"] == device.cuda and found["driver"] == f"CUDA {device.driver}"
