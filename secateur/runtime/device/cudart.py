# SPDX-License-Identifier: Apache-2.0
"""Access to cuda-python 12.6 to 13: import on demand, error codes as exceptions, and timing with events."""

from __future__ import annotations

from typing import Any

from secateur.errors import BackendMissing, SecateurError
from secateur.runtime.receipt import Stopwatch

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


class Clock:
    """Measures time on a stream with CUDA events, which are reused after they are read."""

    def __init__(self, cudart: Any, stream: Any) -> None:
        self._cudart, self._stream = cudart, stream
        self._events: list[Any] = []
        self._unread: list[tuple[Stopwatch, str, Any, Any]] = []

    def mark(self) -> Any:
        """Return an event after the work that is already enqueued."""
        event = self._events.pop() if self._events else check(self._cudart.cudaEventCreate())
        check(self._cudart.cudaEventRecord(event, self._stream))
        return event

    def note(self, watch: Stopwatch, stage: str, start: Any, end: Any) -> None:
        """Add the time between two events to `stage` at the next `read`."""
        self._unread.append((watch, stage, start, end))

    def read(self) -> None:
        """Add all noted times to their watches, in milliseconds; the stream must be synchronized."""
        for watch, stage, start, end in self._unread:
            spent = check(self._cudart.cudaEventElapsedTime(start, end))
            watch.add(stage, spent)
            self._events += start, end
        self._unread.clear()

    def close(self) -> None:
        for event in self._events:
            check(self._cudart.cudaEventDestroy(event))
        self._events.clear()
