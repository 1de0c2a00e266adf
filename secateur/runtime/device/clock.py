# SPDX-License-Identifier: Apache-2.0
"""Measure time on the device with CUDA events, which are read after the stream is synchronized."""

from __future__ import annotations

from typing import Any

from secateur.runtime.device.cudart import check
from secateur.runtime.receipt import Stopwatch


class Clock:
    """CUDA events of one stream; events are reused after they are read."""

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
