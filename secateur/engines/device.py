# SPDX-License-Identifier: Apache-2.0
"""TensorRT and the GPU of this machine: imports on demand, description for engines.json, error messages."""

from __future__ import annotations

import platform
from typing import Any

from secateur.engines.manifest import Device
from secateur.errors import BackendMissing, first_line

WITHOUT = (
    "`--backend ort` runs the bundle without it; `secateur build --dry-run` prints the commands for another device"
)
INSTALL = "install JetPack's or apt's python3-libnvinfer, or pip install tensorrt-cu12 or tensorrt-cu13"


Recorder = Any
"""A trt.IErrorRecorder with `texts`: (code, message) pairs in order."""


def libraries() -> tuple[Any, Any]:
    """Import and return the modules tensorrt and cuda.bindings.runtime.

    Raises:
        BackendMissing: one of them, or a library it loads, is not installed.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as problem:
        raise BackendMissing(f"TensorRT cannot be loaded ({first_line(problem)}); {INSTALL}; {WITHOUT}") from None
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as problem:
        raise BackendMissing(
            f"cuda-python cannot be loaded ({first_line(problem)}); "
            f"pip install cuda-python of the CUDA version; {WITHOUT}"
        ) from None
    return tensorrt, runtime


def this_device(number: int = 0) -> Device:
    """Describe GPU `number` of this machine and the installed TensorRT and CUDA.

    Raises:
        BackendMissing: a library is missing, or CUDA finds no GPU.
    """
    tensorrt, cuda = libraries()
    properties = checked(cuda, cuda.cudaGetDeviceProperties(number), "find the GPU")
    return Device(
        gpu=properties.name.decode(errors="replace") if isinstance(properties.name, bytes) else str(properties.name),
        sm=f"{properties.major}.{properties.minor}",
        multiprocessors=int(properties.multiProcessorCount),
        tensorrt=str(tensorrt.__version__),
        cuda=_version(checked(cuda, cuda.cudaRuntimeGetVersion(), "read its version")),
        driver=_version(checked(cuda, cuda.cudaDriverGetVersion(), "read the driver's version")),
        os=f"{platform.system()}-{platform.machine()}",
    )


def checked(cuda: Any, answer: tuple[Any, ...], task: str) -> Any:
    """Return the result of a CUDA call without its status.

    Raises:
        BackendMissing: the status is an error; the message names the status and the task.
    """
    status, *values = answer
    if int(status) != 0:
        name = getattr(status, "name", status)
        raise BackendMissing(f"CUDA could not {task}: {name}; check the driver; {WITHOUT}")
    return values[0] if len(values) == 1 else tuple(values)


def recorder(trt: Any) -> Recorder:
    """Create an `error_recorder` for a builder, runtime, engine or context. TensorRT would only print its messages.

    trt  the module tensorrt
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


def described(recorded: Recorder) -> str:
    """Return the messages as one line without repetitions; "" if there are none."""
    lines = (" ".join(str(text).split()) for _, text in recorded.texts)
    return "; ".join(dict.fromkeys(lines))


def _version(number: int) -> str:
    """Format a CUDA version number: 12060 -> "12.6"."""
    return f"{number // 1000}.{number % 1000 // 10}"
