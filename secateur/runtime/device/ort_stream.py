# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime's CUDA provider on the stream of the buffers, so that a run does not wait."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, redirect_stdout
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from secateur.bundle.manifest import WeightSpec
from secateur.errors import BackendMissing
from secateur.runtime.device.cudart import describe
from secateur.runtime.device.stream import DeviceBuffer, Stream
from secateur.runtime.device.weights import DeviceWeights
from secateur.runtime.receipt import Stopwatch

PROVIDER = "CUDAExecutionProvider"
MEND = "pip install 'onnxruntime-gpu[cuda,cudnn]' of the driver's CUDA version, not onnxruntime; or use --device cpu"


class Cuda:
    """CUDA device 0, with buffers in its memory.

    Raises:
        BackendMissing: onnxruntime has no CUDA provider, or cuda-python or the device is missing.
    """

    device = "cuda"
    buffers = DeviceBuffer

    def __init__(self, ort: ModuleType) -> None:
        if PROVIDER not in ort.get_available_providers():
            raise BackendMissing(f"the installed onnxruntime has no {PROVIDER}; {MEND}")
        if preload := getattr(ort, "preload_dlls", None):  # CUDA and cuDNN from pip are not on the library path
            with redirect_stdout(sys.stderr):  # it prints the libraries that it does not find
                preload()
        self.stream = Stream()
        self._weights = DeviceWeights(self.stream)
        stream = str(self.stream.handle)
        options = {"device_id": "0", "user_compute_stream": stream, "use_tf32": "0"}
        self.providers: list[Any] = [(PROVIDER, options)]
        self._options = ort.RunOptions()
        self._options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> DeviceBuffer:
        return DeviceBuffer.zeros(self.stream, shape, dtype)

    def weight(self, path: Path, weight: WeightSpec) -> DeviceBuffer:
        """Return the buffer of a weight, see `DeviceWeights`."""
        return self._weights.buffer(path, weight)

    def check(self, session: Any) -> None:
        """Check that a session uses CUDA: if a library is missing, ONNX Runtime only logs it and uses the CPU.

        Raises:
            BackendMissing: the session does not use CUDA.
        """
        if PROVIDER not in session.get_providers():
            raise BackendMissing(f"{PROVIDER} could not load CUDA or cuDNN; {MEND}")

    def run(self, session: Any, binding: Any) -> None:
        self.stream.busy = True
        session.run_with_iobinding(binding, self._options)

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        return self.stream.clock(watch, stage)

    def describe(self) -> dict[str, str]:
        return describe(self.stream.cudart)

    def wait(self) -> None:
        self.stream.synchronize()

    def close(self) -> None:
        self.stream.close()
