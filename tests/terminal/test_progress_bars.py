# SPDX-License-Identifier: Apache-2.0
"""Progress where stderr is no terminal: some lines in long work, none in short work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from secateur.terminal.progress_bars import bars, lines


def clock(*times: float) -> Callable[[], float]:
    rest: Iterator[float] = iter(times)
    return lambda: next(rest)


@pytest.mark.parametrize(
    ("seconds", "steps", "most", "least"),
    [(2, 40, 0, 0), (29, 1000, 0, 0), (720, 1000, 20, 12), (720, 12, 12, 11), (36_000, 2000, 120, 110)],
    ids=["short", "half a minute", "12 minutes", "few steps", "10 hours"],
)
def test_lines_of_long_work(
    seconds: float, steps: int, most: int, least: int, capsys: pytest.CaptureFixture[str]
) -> None:
    show = lines(clock(0, *(seconds * (step + 1) / steps for step in range(steps))))
    for step in range(steps):
        show("export", f"graph {step}", step + 1, steps)
    captured = capsys.readouterr()
    assert captured.out == "" and least <= captured.err.count("\n") <= most


def test_the_same_stage_twice(capsys: pytest.CaptureFixture[str]) -> None:
    """A stage is repeated for each image size; both passes have their lines."""
    show = lines(clock(0, *range(40, 40 * 21, 40)))
    for _ in range(2):
        for step in range(10):
            show("compare", "", step + 1, 10)
    assert capsys.readouterr().err.count("\n") == 20


def test_a_line_names_stage_share_and_time(capsys: pytest.CaptureFixture[str]) -> None:
    show = lines(clock(0, 31, 40, 62, 93))
    for stage, note, done, total in (
        ("measure", "", 5, 10),
        ("measure", "", 8, 10),
        ("export", "a\x1b[2K\nb", 1, 10),
        ("export", "c", 1, 0),
    ):
        show(stage, note, done, total)
    assert capsys.readouterr().err.splitlines() == [
        "measure: 50% (5 of 10), 31 s",
        r"export a\x1b[2K\nb: 10% (1 of 10), 62 s",
        "export c: 100% (1 of 0), 93 s",
    ]


def test_bars_print_nothing_in_short_work(capsys: pytest.CaptureFixture[str]) -> None:
    with bars() as show:
        for step in range(100):
            show("export", "", step, 100)
    assert capsys.readouterr().err == ""


def test_notes_on_a_terminal_are_escaped() -> None:
    """In a process of its own that takes its pipe for a terminal."""
    code = (
        "from secateur.terminal.progress_bars import bars\n"
        "with bars() as show: show('ex\\x1b[9mport', '[red]b\\x1b[9m\\n/', 1, 2)\n"
    )
    environment = {"FORCE_COLOR": "1", "COLUMNS": "200", "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert r"ex\x1b[9mport" in done.stderr and r"[red]b\x1b[9m\n/" in done.stderr and "\x1b[9m" not in done.stderr
