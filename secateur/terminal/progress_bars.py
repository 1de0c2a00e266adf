# SPDX-License-Identifier: Apache-2.0
"""Progress bars on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich import progress as rich
from rich.console import Console

from secateur.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """Yield show(bar, note, done, total), which draws one bar per name if stderr is a terminal."""
    console = Console(stderr=True)
    columns = (
        rich.TextColumn("{task.description:<12}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(
        *columns, rich.TextColumn("{task.fields[note]}"), console=console, disable=not console.is_terminal
    ) as shown:
        tasks = {}

        def show(bar: str, note: str, done: int, total: int) -> None:
            if bar not in tasks:
                tasks[bar] = shown.add_task(bar, total=total, note="")
            shown.update(tasks[bar], completed=done, total=total, note="" if done == total else note)

        yield show
