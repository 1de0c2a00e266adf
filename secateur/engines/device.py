# SPDX-License-Identifier: Apache-2.0
"""TensorRT and the GPU of this machine: imported when asked for, described for engines.json."""

from __future__ import annotations

import platform
from typing import Any

from secateur.engines.manifest import Device
from secateur.errors import BackendMissing

WITHOUT = (
    "`--backend ort` runs the bundle without it, `secateur build --dry-run` prints the commands for another device"
)
INSTALL = "install JetPack's or apt's python3-libnvinfer, or pip install tensorrt-cu12 or tensorrt-cu13"


def libraries() -> tuple[Any, Any]:
    """The modules tensorrt and cuda.bindings.runtime.

    Raises:
        BackendMissing: one of them, or a library that it loads, is not installed.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as problem:
        raise BackendMissing(f"TensorRT cannot be loaded ({_brief(problem)}); {INSTALL}; {WITHOUT}") from None
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError) as problem:
        raise BackendMissing(
            f"cuda-python cannot be loaded ({_brief(problem)}); pip install cuda-python of the CUDA version; {WITHOUT}"
        ) from None
    return tensorrt, runtime


def this_device(number: int = 0) -> Device:
    """GPU `number` of this machine, with the TensorRT and CUDA that are installed.

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
    """What a CUDA call gave, without its status.

    Raises:
        BackendMissing: the status is an error; the message names it and the task.
    """
    status, *values = answer
    if int(status) != 0:
        name = getattr(status, "name", status)
        raise BackendMissing(f"CUDA could not {task}: {name}; check the driver; {WITHOUT}")
    return values[0] if len(values) == 1 else tuple(values)


def _brief(problem: Exception) -> str:
    return (str(problem).strip() or type(problem).__name__).splitlines()[0]


def _version(number: int) -> str:
    """12060 -> "12.6" """
    return f"{number // 1000}.{number % 1000 // 10}"
