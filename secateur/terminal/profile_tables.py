# SPDX-License-Identifier: Apache-2.0
"""Tables of a profile, from its JSON document."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from secateur.profiling import formats
from secateur.terminal.tables import table

SLOWEST = 15
PERCENTILES = ("p50", "p90", "p95", "p99")


def show(result: dict[str, Any], console: Console) -> None:
    """Print the times, how they were measured, failures, and advice."""
    if result["chains"]:
        console.print(_first_token(result))
        console.print(_parts(result))
    console.print(_graphs(result))
    if gates := [g for g in result["graphs"] if g["kind"] == "gate" and g["layers"]]:
        console.print(_layers(gates))
    console.print(formats.note(result["apart"]), style="dim italic", markup=False)
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
            *(formats.milliseconds(c["first_token"][p]) for p in PERCENTILES),
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
            formats.milliseconds(c["prefill"]["p50"]),
            formats.times(c["prefill_speed_up"]),
            formats.percent(c["gates_share"]),
            formats.milliseconds(c["decode"]["p50"] if c["decode"] else None),
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
