# SPDX-License-Identifier: Apache-2.0
"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@contextmanager
def bars() -> Iterator[Callable[[str, str, int, int], None]]:
    """Yields show(bar, note, done, total): one bar for each name, drawn where stderr is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal
    ) as shown:
        tasks = {}

        def show(bar: str, note: str, done: int, total: int) -> None:
            if bar not in tasks:
                tasks[bar] = shown.add_task(bar, total=total, note="")
            shown.update(tasks[bar], completed=done, total=total, note="" if done == total else note)

        yield show
