# SPDX-License-Identifier: Apache-2.0
"""The device in engines.json: its description, and devices that may run its plans."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from secateur.engines.device import this_device, this_platform
from secateur.engines.library import TensorRT
from secateur.errors import BackendMissing


def test_this_device(simulated: Any) -> None:
    device = this_device()
    assert (device.gpu, device.sm, device.multiprocessors) == ("Orin", "8.7", 16)
    assert this_platform(TensorRT(), device).folder == "orin-sm8.7-16mp-trt10.3.0.30"


def test_all_orins_have_the_same_name(simulated: Any) -> None:
    """The number of multiprocessors distinguishes them."""
    agx = this_device()
    nano = dataclasses.replace(agx, multiprocessors=8)
    assert agx.differs(nano) == "multiprocessors 16, not 8" and agx.name != nano.name
    assert agx.differs(dataclasses.replace(agx, driver="13.0", cuda="13.0")) == ""


def test_without_a_gpu(simulated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA itself is queried, since a Jetson may have no nvidia-smi."""
    monkeypatch.setenv("SIMULATED_DEVICES", "0")
    with pytest.raises(BackendMissing, match="CUDA could not find the GPU: cudaErrorNoDevice; check the driver; `--b"):
        this_device()
