# SPDX-License-Identifier: Apache-2.0
"""Tables of `secateur eval`: every figure of the document, and a dash for undefined values."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console

from secateur.commands import eval as command
from secateur.evaluation.results import Evaluation, McNemar, Percentiles, ScheduleResult, Split, SplitPart

FULL = ScheduleResult(
    name="full",
    method="full",
    positions="original",
    gates=(),
    compression=0.0,
    average_tokens=144.0,
    prefill_flops_ratio=1.0,
    flops_ratio_with_gates=None,
    cache_bytes=1_290_000,
    score=0.9,
    score_interval=(0.85, 0.95),
    retention=1.0,
    retention_interval=(1.0, 1.0),
    mcnemar=None,
    split=None,
    ttft_ms=Percentiles(19.5, 19.8),
    stage_ms={},
    groups={"count": 0.8},
)
OURS = replace(
    FULL,
    name="ours",
    score=0.6,
    retention=0.667,
    mcnemar=McNemar(17, 3, 0.0026),
    split=Split("full", SplitPart(40, 0.425), SplitPart(0, None)),
    groups={"count": 0.25},
)


def shown(*schedules: ScheduleResult, full_marks: float = 1.0, metric: str = "accuracy") -> str:
    found = Evaluation(
        "demo", metric, full_marks, 60, 9, 0, "b", "m", "cpu", "fp32", "ort", {}, "", 144, (12, 12), 5, (), schedules
    )
    out = io.StringIO()
    command.show(found.as_dict(), Console(file=out, width=80))
    return out.getvalue()


def row(text: str, name: str, number: int) -> list[str]:
    """Return the cells of the `number`-th row that starts with `name`."""
    lines = [line for line in text.splitlines() if line.startswith(f"│ {name} ")]
    return [cell.strip() for cell in lines[number].strip("│").split("│")]


def test_all_figures() -> None:
    text = shown(FULL, OURS)
    assert "accuracy, %, on 60 questions (demo)" in text
    assert row(text, "ours", 0) == ["ours", "0.0%", "60.0", "85.0-95.0", "66.7", "100.0-100.0"]
    assert row(text, "ours", 1) == ["ours", "17", "3", "0.0026", "42.5", "40", "-", "0"]
    assert row(text, "full", 1) == ["full", "144.0", "1.000", "19.5", "19.8", "1.29"]
    assert row(text, "ours", 3) == ["ours", "25.0"]


def test_notes_on_what_the_figures_do_not_include() -> None:
    text = shown(FULL, replace(OURS, flops_ratio_with_gates=0.5))
    assert row(text, "ours", 2)[2] == "1.000 (0.500)"
    words = " ".join(text.split())
    assert "The gates themselves are not included, nor is the encoder" in words and "In brackets" in words
    assert "This bundle cuts the decoder into 5 segments" in words and "full (144.0 tokens)" in words
    assert "In brackets" not in shown(FULL, OURS)


def test_undefined_figures() -> None:
    text = shown(replace(FULL, retention=None, retention_interval=None, groups={}))
    assert row(text, "full", 0)[-2:] == ["-", "-"]
    assert "Against full" not in text and "by kind" not in text


def test_half_right_answers_have_only_a_split() -> None:
    assert row(shown(FULL, replace(OURS, mcnemar=None)), "ours", 1)[:5] == ["ours", "-", "-", "-", "42.5"]
    assert "hard" not in shown(FULL, replace(OURS, split=None))


def test_scores_with_other_full_marks_are_not_percent() -> None:
    text = shown(replace(FULL, score=1520.4, score_interval=(1400, 1600)), full_marks=2800, metric="score")
    assert "score of 2800 on 60 questions" in text and row(text, "full", 0)[2:4] == ["1520.4", "1400.0-1600.0"]
