# SPDX-License-Identifier: Apache-2.0
"""Run code of a checkpoint, such as its chat template, with a bound on time, memory and output.

A template runs in a sandbox without access to files, but it may loop or multiply texts. On Linux it runs in a copy of
this process, which the system stops at the bounds; elsewhere it runs here, without them.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress

from secateur.errors import first_line

SECONDS = 20
"""Of the processor; the clock may show five times as much on a busy machine."""
PATIENCE = 5
MEMORY = 1 << 30
"""Bytes beyond those of this process."""
MOST_BYTES = 1 << 20
"""Bytes of the result."""
FINISHED, FAILED = b"+", b"-"


class OutOfBounds(Exception):
    """The code failed, or reached a bound; the message says which."""


def bounded(work: Callable[[], str], seconds: float = SECONDS) -> str:
    """Return the text that `work` returns.

    Raises:
        OutOfBounds: it raised an exception, or took more than the time, `MEMORY` or `MOST_BYTES`.
    """
    if sys.platform != "linux":
        try:
            return work()
        except Exception as problem:
            raise OutOfBounds(first_line(problem)) from None
    answer: bytes | None = None
    source, sink = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks with threads: the copy only runs Python code
        child = os.fork()
    if child == 0:
        os.close(source)
        _work(work, sink, seconds)
    os.close(sink)
    try:
        answer = _read(source, time.monotonic() + PATIENCE * seconds)
    finally:
        os.close(source)
        if answer != b"":  # else it ends by itself, and its status says why
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
    if answer is None or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        raise OutOfBounds(f"it takes more than {seconds:g} seconds")
    if len(answer) > MOST_BYTES:
        raise OutOfBounds(f"it makes more than {MOST_BYTES} bytes of text")
    if answer[:1] != FINISHED:
        ended = f"it takes more than {MEMORY >> 20} MiB of memory" if answer else "the process that ran it was stopped"
        raise OutOfBounds(answer[1:].decode() or ended)
    return answer[1:].decode()


def _work(work: Callable[[], str], sink: int, seconds: float) -> None:
    """Write the result of `work` to a pipe and end this process."""
    try:
        import resource

        with open("/proc/self/statm", encoding="ascii") as file:
            used = int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        most = int(seconds) + int(time.process_time()) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (most, most + 1))  # the first ends the process with SIGXCPU
        try:
            answer = FINISHED + work().encode("utf-8", "replace")[: MOST_BYTES + 1]
        except MemoryError:
            answer = FAILED
        except Exception as problem:
            answer = FAILED + first_line(problem).encode("utf-8", "replace")
        while answer:
            answer = answer[os.write(sink, answer) :]
    finally:
        os._exit(0)


def _read(source: int, end: float) -> bytes | None:
    """Return what is written to a pipe until it is closed or too long; None if that takes longer than until `end`."""
    answer = b""
    while len(answer) <= MOST_BYTES:
        if not select.select([source], [], [], max(0.0, end - time.monotonic()))[0]:
            return None
        piece = os.read(source, 1 << 16)
        if not piece:
            break
        answer += piece
    return answer
