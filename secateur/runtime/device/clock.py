# SPDX-License-Identifier: Apache-2.0
"""Measure time on the device with CUDA events, which are read after the stream was synchronized."""

from __future__ import annotations

from typing import Any

from secateur.runtime.device.cudart import check
from secateur.runtime.receipt import Stopwatch


class Clock:
    """Events of one stream; events are reused after they were read."""

    def __init__(self, cudart: Any, stream: Any) -> None:
        self._cudart, self._stream = cudart, stream
        self._events: list[Any] = []
        self._unread: list[tuple[Stopwatch, str, Any, Any]] = []

    def mark(self) -> Any:
        """Record an event after the work so far."""
        event = self._events.pop() if self._events else check(self._cudart.cudaEventCreate())
        check(self._cudart.cudaEventRecord(event, self._stream))
        return event

    def note(self, watch: Stopwatch, stage: str, start: Any, end: Any) -> None:
        """Assign the time between two events to `stage`."""
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
