# SPDX-License-Identifier: Apache-2.0
"""Import cuda-python on demand and raise its error codes as exceptions; for cuda-python 12.6 to 13."""

from __future__ import annotations

from typing import Any

from secateur.errors import BackendMissing, SecateurError

INSTEAD = "or use `--backend ort`, which runs on the CPU"
INSTALL = "install cuda-python of the driver's CUDA: 'cuda-python>=12.6.2,<13' or 'cuda-python>=13,<14'"
MENDS = {
    "cudaErrorMemoryAllocation": "use a smaller batch, a shorter text or fewer new tokens",
    "cudaErrorInsufficientDriver": INSTALL,
}


def import_cudart() -> Any:
    """Import the module cuda.bindings.runtime.

    Raises:
        BackendMissing: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError):
        raise BackendMissing(f"cuda-python is not installed; {INSTALL}, {INSTEAD}") from None
    return runtime


def describe(cudart: Any) -> dict[str, str]:
    """Return the name of device 0, and CUDA versions, for a report of measurements."""
    properties = check(cudart.cudaGetDeviceProperties(0))
    versions = check(cudart.cudaRuntimeGetVersion()), check(cudart.cudaDriverGetVersion())
    runtime, driver = (f"{number // 1000}.{number % 1000 // 10}" for number in versions)  # 12060 means 12.6
    name = properties.name.decode(errors="replace")
    return {"GPU": f"{name}, SM {properties.major}.{properties.minor}", "CUDA": runtime, "driver": f"CUDA {driver}"}


def check(result: tuple[Any, ...]) -> Any:
    """Return the value of a cuda-python call; None if it returns only an error code.

    Raises:
        SecateurError: the call failed; has CUDA's name of the error.
    """
    error = result[0]
    if int(error) != 0:
        mend = MENDS.get(error.name)
        raise SecateurError(f"CUDA failed with {error.name}" + (f"; {mend}" if mend else ""))
    return result[1] if len(result) > 1 else None
