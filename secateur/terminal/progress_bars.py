# SPDX-License-Identifier: Apache-2.0
"""Progress on stderr: bars on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import progress as rich
from rich.console import Console

from secateur.errors import printable
from secateur.progress import Progress

SECONDS, SHARE, SILENCE = 30.0, 0.05, 300.0
"""A line is printed 30 s after the last one, or after the start, if 5 % more are done, and after 5 minutes anyway."""


@contextmanager
def bars() -> Iterator[Progress]:
    """Yield show(bar, note, done, total), which draws one bar per name if stderr is a terminal, else prints lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lines()
        return
    columns = (
        rich.TextColumn("{task.description:<12}", markup=False),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
    )
    with rich.Progress(*columns, console=console) as shown:
        tasks = {}

        def show(bar: str, note: str, done: int, total: int) -> None:
            if bar not in tasks:
                tasks[bar] = shown.add_task(printable(bar), total=total, note="")
            note = "" if done == total else printable(note)
            shown.update(tasks[bar], completed=done, total=total, note=note)

        yield show


def lines(clock: Callable[[], float] = time.monotonic) -> Progress:
    """Return a callback that prints "measure: 41% (23 of 56), 95 s" at most every 30 s, so nothing in short work."""
    start = last = clock()
    shares: dict[str, float] = {}

    def show(bar: str, note: str, done: int, total: int) -> None:
        nonlocal last
        now, share = clock(), done / max(total, 1)
        if share < shares.get(bar, 0):  # the same stage again, for another image size
            shares[bar] = 0
        if now - last < SECONDS or (share - shares.get(bar, 0) < SHARE and now - last < SILENCE):
            return
        last, shares[bar] = now, share
        what = " ".join(filter(None, (printable(bar), printable(note))))
        print(f"{what}: {share:.0%} ({done} of {total}), {now - start:.0f} s", file=sys.stderr, flush=True)

    return show
