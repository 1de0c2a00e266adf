# SPDX-License-Identifier: Apache-2.0
"""Streams, events and graphs: work is noted in order, and done when somebody waits for it."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, fields

from simulated.faults import Fault, Refused
from simulated.memory import Block, Memory, Range


@dataclass
class Counters:
    """How often something happened; `executions` and `copies` count when they are done, the others when called."""

    allocations: int = 0
    syncs: int = 0
    copies: int = 0
    executions: int = 0
    captures: int = 0
    launches: int = 0
    compiled: int = 0

    def reset(self) -> None:
        for counter in fields(self):
            setattr(self, counter.name, 0)


@dataclass(frozen=True)
class Work:
    """One piece of work and the memory it needs; `scratch` is memory that work of no other stream may use meanwhile."""

    name: str
    do: Callable[[], None]
    ranges: tuple[Range, ...] = ()
    scratch: Range | None = None


@dataclass(eq=False)
class Event:
    """`stream` and `due`: recorded after so many pieces of that stream's work; `at`: when it was reached."""

    timing: bool
    stream: Stream | None = None
    due: int = 0
    at: float | None = None
    captured: bool = False


@dataclass(eq=False)
class Graph:
    """Recorded work; `instances` hold its memory."""

    work: tuple[Work, ...]


@dataclass(eq=False)
class Capture:
    """Work being recorded, and the pinned memory as it was at the start."""

    pinned: dict[int, bytes]
    work: list[Work] = field(default_factory=list)
    valid: bool = True


@dataclass(eq=False)
class Stream:
    """Work that waits; `submitted` and `done` count pieces."""

    blocking: bool
    waiting: deque[Work] = field(default_factory=deque)
    submitted: int = 0
    done: int = 0
    capture: Capture | None = None

    def submit(self, work: Work) -> None:
        """Note work, or record it."""
        if self.capture:
            self.capture.work.append(work)
        else:
            self.waiting.append(work)
            self.submitted += 1

    def run(self, until: int | None = None) -> None:
        """Do the work that waits, up to piece number `until`."""
        while self.waiting and (until is None or self.done < until):
            work = self.waiting.popleft()
            self.done += 1
            work.do()


class Device:
    """Memory and everything that has a handle."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.last_error = "cudaSuccess"
        self.memory = Memory()
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: dict[int, Graph] = {}
        self.instances: dict[int, Graph] = {}
        self._handles = itertools.count(0x5EED0000, 16)

    def handle(self) -> int:
        """A number that is in no use."""
        return next(self._handles)

    def stream(self, handle: int) -> Stream:
        """The stream of a handle.

        Raises:
            Fault: the default stream, which waits for others on a real device and is not simulated.
            Refused: there is no such stream.
        """
        if handle == 0:
            raise Fault("the default stream is used; create a stream")
        if handle not in self.streams:
            raise Refused("cudaErrorInvalidResourceHandle")
        return self.streams[handle]

    def event(self, handle: int) -> Event:
        if handle not in self.events:
            raise Refused("cudaErrorInvalidResourceHandle")
        return self.events[handle]

    def outside_capture(self) -> None:
        """Called by everything that a stream cannot record.

        Raises:
            Refused: a stream is recording; its recording is void.
        """
        recording = [stream.capture for stream in self.streams.values() if stream.capture]
        for capture in recording:
            capture.valid = False
        if recording:
            raise Refused("cudaErrorStreamCaptureUnsupported")

    def submit(self, stream: Stream, work: Work) -> None:
        """Note work on a stream.

        Raises:
            Fault: work that waits on another stream uses the same scratch memory.
        """
        if work.scratch:
            for other in self.streams.values():
                for waiting in other.waiting if other is not stream else ():
                    if waiting.scratch and waiting.scratch.overlaps(work.scratch):
                        raise Fault(f"{work.name} and {waiting.name} share memory on two streams")
        stream.submit(work)

    def free(self, address: int, kind: str) -> None:
        """Free a block; 0 is allowed.

        Raises:
            Fault: work that waits, or a recorded graph, still needs it.
        """
        self.outside_capture()
        if address == 0:
            return
        block = self.memory.block(address, kind)
        for stream in self.streams.values():
            for work in stream.waiting:
                _no_use(work, block, "waits")
        for graph in self.instances.values():
            for work in graph.work:
                _no_use(work, block, "is in an instantiated graph")
        self.memory.free(block)

    def synchronize(self) -> None:
        self.outside_capture()
        self.counters.syncs += 1
        for stream in self.streams.values():
            stream.run()

    def record(self, event: Event, stream: Stream) -> None:
        """Put the event after the work of the stream."""
        event.stream, event.at, event.captured = stream, None, stream.capture is not None
        if event.captured:
            return

        def reached() -> None:
            event.at = time.perf_counter()

        stream.submit(Work("event", reached))
        event.due = stream.submitted

    def reach(self, event: Event) -> None:
        """Do the work before the event."""
        if event.captured:
            raise Refused("cudaErrorCapturedEvent")
        if event.stream is not None:
            event.stream.run(event.due)

    def begin_capture(self, stream: Stream) -> None:
        if stream.capture:
            raise Refused("cudaErrorIllegalState")
        self.counters.captures += 1
        stream.capture = Capture({b.address: b.data.tobytes() for b in self.memory.blocks("pinned")})

    def end_capture(self, stream: Stream) -> Graph:
        """The graph.

        Raises:
            Refused: something was called that cannot be recorded.
            Fault: the host wrote into pinned memory meanwhile, which a replay would not do.
        """
        capture, stream.capture = stream.capture, None
        if capture is None:
            raise Refused("cudaErrorIllegalState")
        if not capture.valid:
            raise Refused("cudaErrorStreamCaptureInvalidated")
        for block in self.memory.blocks("pinned"):
            if block.data.tobytes() != capture.pinned.get(block.address):
                raise Fault("the host wrote into pinned memory while a stream was recorded")
        return Graph(tuple(capture.work))


def _no_use(work: Work, block: Block, why: str) -> None:
    ranges = (*work.ranges, *((work.scratch,) if work.scratch else ()))
    if any(part.block is block for part in ranges):
        raise Fault(f"{block.kind} memory is freed, but {work.name} needs it and {why}")
