# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation and of a profile, from their JSON documents."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from secateur.evaluation import results as notes
from secateur.profiling.results import note
from secateur.report import formats
from secateur.terminal.tables import table

NOTHING = "-"
SLOWEST = 15
PERCENTILES = ("p50", "p90", "p95", "p99")


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
    said += [notes.sizes_note(result["image_sizes"]), notes.bundle_note(result["segments"], result["encoder_scores"])]
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


def show_profile(result: dict[str, Any], console: Console) -> None:
    """Print the times, how they were measured, failures, and advice."""
    if result["chains"]:
        console.print(_first_token(result))
        console.print(_parts(result))
    console.print(_graphs(result))
    if gates := [g for g in result["graphs"] if g["kind"] == "gate" and g["layers"]]:
        console.print(_layers(gates))
    console.print(note(result["apart"]), style="dim italic", markup=False)
    for failure in result["failures"]:
        reason = formats.plain(failure["reason"])
        console.print(f"failed: {failure['case']}: {reason}", markup=False, soft_wrap=True)
    for line in result["advice"]:
        console.print(f"note: {line}", markup=False, soft_wrap=True)


def _first_token(result: dict[str, Any]) -> Table:
    made = table(f"Time to first token, ms, by {result['source']}", "schedule", *PERCENTILES, "speed-up")
    for c in result["chains"]:
        made.add_row(
            c["schedule"],
            *(formats.milliseconds(c["first_token"][p], 2) for p in PERCENTILES),
            formats.times(c["speed_up"]),
        )
    return made


def _parts(result: dict[str, Any]) -> Table:
    columns = ("tokens", "FLOPs", "prefill", "speed-up", "gates, %", "decode")
    made = table("Prefill, gates and decode step, ms (p50)", "schedule", *columns)
    made.caption = "FLOPs: of the vision tokens in the prefill, over those of full"
    made.caption_justify = "left"
    for c in result["chains"]:
        made.add_row(
            c["schedule"],
            f"{c['average_tokens']:.1f}",
            f"{c['prefill_flops_ratio']:.2f}",
            formats.milliseconds(c["prefill"]["p50"], 2),
            formats.times(c["prefill_speed_up"]),
            formats.percent(c["gates_share"]),
            formats.milliseconds(c["decode"]["p50"] if c["decode"] else None, 2),
        )
    return made


def _graphs(result: dict[str, Any]) -> Table:
    """Return the slowest graphs; in-process times have a column for the schedule."""
    every = sorted(result["graphs"], key=lambda g: -g["compute"]["p50"])
    last = ("enqueue", "%") if result["apart"] else ("%", "of")
    made = table("Slowest graphs, ms and share of the schedule", "graph", *PERCENTILES, *last)
    made.columns[0].overflow = "fold"
    for g in every[:SLOWEST]:
        share = formats.percent(max(g["shares"].values(), default=None))
        more = (formats.fine(g["enqueue"]), share) if result["apart"] else (share, ", ".join(g["shares"]))
        made.add_row(g["name"], *(formats.fine(g["compute"][p]) for p in PERCENTILES), *more)
    if len(every) > SLOWEST:
        made.caption = f"{SLOWEST} of {len(every)}; all are in --json and --html"
        made.caption_justify = "left"
    return made


def _layers(gates: list[dict[str, Any]]) -> Table:
    made = table("Slowest layers of gates", "layer", "ms", "% of gate", "top-k, gather", "gate")
    made.columns[0].overflow = made.columns[-1].overflow = "fold"
    every = [(layer, gate["name"]) for gate in gates for layer in gate["layers"]]
    for layer, gate in sorted(every, key=lambda pair: -pair[0]["median"])[:SLOWEST]:
        name = Text(formats.plain(layer["name"]))  # Text: brackets are not markup
        selects = "yes" if layer["selects"] else ""
        made.add_row(name, formats.fine(layer["median"]), formats.percent(layer["share"]), selects, gate)
    return made
