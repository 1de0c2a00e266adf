# SPDX-License-Identifier: Apache-2.0
"""The GPU of this machine, and TensorRT's error messages."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

from secateur.engines.library import TensorRT
from secateur.engines.manifest import Profile
from secateur.engines.platforms import Device, Platform
from secateur.errors import BackendMissing, first_line

INSTEAD = "`--backend ort` runs the bundle without it"

Recorder = Any
"""A trt.IErrorRecorder with `texts`: (code, message) pairs in order."""


def this_device(number: int = 0) -> Device:
    """Describe GPU `number` of this machine.

    Raises:
        BackendMissing: cuda-python is missing, or CUDA finds no GPU.
    """
    try:
        from cuda.bindings import runtime as cuda
    except (ImportError, OSError) as problem:
        raise BackendMissing(
            f"cuda-python cannot be loaded ({first_line(problem)}); "
            f"pip install cuda-python of the CUDA version; {INSTEAD}"
        ) from None
    properties = checked(cuda, cuda.cudaGetDeviceProperties(number), "find the GPU")
    return Device(
        gpu=properties.name.decode(errors="replace") if isinstance(properties.name, bytes) else str(properties.name),
        sm=f"{properties.major}.{properties.minor}",
        multiprocessors=int(properties.multiProcessorCount),
        cuda=_version(checked(cuda, cuda.cudaRuntimeGetVersion(), "read its version")),
        driver=_version(checked(cuda, cuda.cudaDriverGetVersion(), "read the driver's version")),
        os=f"{platform.system()}-{platform.machine()}",
    )


def this_platform(library: TensorRT, device: Device) -> Platform:
    """Return the platform whose plans this device can run with the library."""
    return Platform(library.name, library.version, (device.sm.replace(".", ""),), None if library.portable else device)


def checked(cuda: Any, answer: tuple[Any, ...], task: str) -> Any:
    """Return the result of a CUDA call without its status.

    Raises:
        BackendMissing: the status is an error; the message names the status and the task.
    """
    status, *values = answer
    if int(status) != 0:
        name = getattr(status, "name", status)
        raise BackendMissing(f"CUDA could not {task}: {name}; check the driver; {INSTEAD}")
    return values[0] if len(values) == 1 else tuple(values)


def recorder(trt: Any) -> Recorder:
    """Create an `error_recorder` for a runtime, engine or context. TensorRT would only print its messages.

    trt  the module of the library
    """

    class Texts(trt.IErrorRecorder):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IErrorRecorder.__init__(self)
            self.texts: list[tuple[Any, str]] = []

        def get_num_errors(self) -> int:
            return len(self.texts)

        def get_error_code(self, index: int) -> Any:
            return self.texts[index][0]

        def get_error_desc(self, index: int) -> str:
            return self.texts[index][1]

        def has_overflowed(self) -> bool:
            return False

        def clear(self) -> None:
            self.texts.clear()

        def report_error(self, code: Any, description: str) -> bool:
            self.texts.append((code, description))
            return False  # do not stop

    return Texts()


def profile_difference(engine: Any, profiles: Sequence[Profile]) -> str:
    """Return the first minimum shape of an engine that differs from that of its profile, with the mend; else ""."""
    for number, wanted in enumerate(profiles):
        for name, shapes in wanted.ranges.items():
            least = tuple(engine.get_tensor_profile_shape(name, number)[0])
            if least != shapes.min:
                return (
                    f"the minimum {least} for '{name}' in its profile '{wanted.name}' instead of {shapes.min}; "
                    "if this TensorRT does not support empty tensors, build with --masked-past"
                )
    return ""


def _version(number: int) -> str:
    """Format a CUDA version number: 12060 -> "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"
