# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation, from its JSON document."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from secateur.evaluation import notes
from secateur.terminal.tables import table

NOTHING = "-"


def scores(result: dict[str, Any]) -> Table:
    """Return score and retention with their intervals."""
    title = f"{result['metric']}{_unit(result)} on {result['questions']} questions ({result['task']})"
    made = table(title, "schedule", "pruned", "score", "95 %", "retention", "95 %")
    for s in result["schedules"]:
        made.add_row(
            s["name"],
            f"{s['compression']:.1%}",
            f"{_factor(result) * s['score']:.1f}",
            _interval(s["score_interval"], _factor(result)),
            NOTHING if s["retention"] is None else f"{100 * s['retention']:.1f}",
            _interval(s["retention_interval"], 100),
        )
    return made


def against_full(result: dict[str, Any]) -> Table | None:
    """Return answers lost and won, and the split by the downsampled image; None without a comparison."""
    compared = [s for s in result["schedules"] if s["mcnemar"] or s["split"]]
    if not compared:
        return None
    with_split = any(s["split"] for s in compared)
    columns = ("lost", "won", "p") + (("hard, %", "of", "easy, %", "of") if with_split else ())
    made = table("Against full, on the same questions", "schedule", *columns)
    made.caption = "lost, won: questions that only full or only the schedule answers correctly; p: McNemar's exact test"
    if with_split:
        tokens = {s["name"]: s["average_tokens"] for s in result["schedules"]}
        used = notes.references((s["split"]["reference"] for s in compared if s["split"]), tokens)
        made.caption += (
            "\nhard, easy: questions that full answers correctly and the downsampled image wrongly or correctly"
        )
        made.caption += f"\ndownsampled images nearest in tokens: {used}"
    made.caption_justify = "left"
    for s in compared:
        test, parts = s["mcnemar"], s["split"]
        row = [str(test["only_full"]), str(test["only_this"]), f"{test['p']:.2g}"] if test else [NOTHING] * 3
        if with_split:
            row += [*_part(parts["hard"]), *_part(parts["easy"])] if parts else [NOTHING] * 4
        made.add_row(s["name"], *row)
    return made


def costs(result: dict[str, Any]) -> Table:
    """Return time to first token and memory, one question at a time."""
    title = f"Time to first token of {result['timed']} questions, one at a time"
    made = table(title, "schedule", "tokens", "FLOPs", "p50 ms", "p95 ms", "cache MB")
    for s in result["schedules"]:
        made.add_row(
            s["name"],
            f"{s['average_tokens']:.1f}",
            _flops(s),
            f"{s['ttft_ms']['p50']:.1f}",
            f"{s['ttft_ms']['p95']:.1f}",
            f"{s['cache_bytes'] / 1e6:.2f}",
        )
    return made


def costs_note(result: dict[str, Any]) -> str:
    """Return notes on what FLOPs and times do not include; too long for a caption."""
    with_gates = any(s["flops_ratio_with_gates"] is not None for s in result["schedules"])
    said = [f"FLOPs: {notes.FLOPS}", notes.FLOPS_WITH_GATES if with_gates else ""]
    said += [notes.sizes(result["image_sizes"]), notes.bundle(result["segments"], result["encoder_scores"])]
    return " ".join(filter(None, said))


def groups(result: dict[str, Any]) -> Table:
    """Return the score for each kind of question."""
    kinds = list(result["schedules"][0]["groups"])
    made = table(f"{result['metric']}{_unit(result)} by kind of question", "schedule", *kinds)
    for s in result["schedules"]:
        made.add_row(s["name"], *(f"{_factor(result) * s['groups'][kind]:.1f}" for kind in kinds))
    return made


def _factor(result: dict[str, Any]) -> float:
    """Return the factor for display: metrics from 0 to 1 are shown in percent."""
    return 100.0 if result["full_marks"] == 1 else 1.0


def _unit(result: dict[str, Any]) -> str:
    return ", %," if result["full_marks"] == 1 else f" of {result['full_marks']:.0f}"


def _interval(bounds: tuple[float, float] | None, factor: float) -> str:
    return NOTHING if bounds is None else f"{factor * bounds[0]:.1f}-{factor * bounds[1]:.1f}"


def _flops(schedule: dict[str, Any]) -> str:
    gates = schedule["flops_ratio_with_gates"]
    return f"{schedule['prefill_flops_ratio']:.3f}" + ("" if gates is None else f" ({gates:.3f})")


def _part(part: dict[str, Any]) -> tuple[str, str]:
    return NOTHING if part["score"] is None else f"{100 * part['score']:.1f}", str(part["questions"])
