# SPDX-License-Identifier: Apache-2.0
"""Table of an audit, from its JSON document."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.audit.results import EXPLANATIONS, MEMORY
from secateur.report.formats import NONE, megabytes, times
from secateur.terminal.tables import table

WIDTH = 110
"""Columns that the table needs."""


def show(result: dict[str, Any], console: Console) -> None:
    """Print the table, what its columns mean, warnings and problems."""
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)  # a file or a pipe gets all columns
    console.print(figures(result))
    for name, meaning in EXPLANATIONS.items():
        console.print(f"{name}: {meaning}", markup=False, style="dim")
    if result["memory"] is not None:
        console.print(memory(result["memory"]))
        console.print(MEMORY, markup=False, style="dim")
    for graph in result["graphs"]:
        for warning in graph["warnings"]:
            console.print(f"warning: {graph['name']}: {warning}", markup=False, soft_wrap=True)
    for problem in result["problems"]:
        console.print(f"problem: {problem}", markup=False, soft_wrap=True)


def memory(found: dict[str, Any]) -> Table:
    """Return one row for each schedule."""
    made = table("Memory on the device, computed, in MB", "schedule", "weights", "plans", "scratch", "KV cache", "all")
    for name, own in found.items():
        made.add_row(name, *(megabytes(own[part]) for part in ("weights", "plans", "activations", "cache", "total")))
    return made


def figures(result: dict[str, Any]) -> Table:
    """Return one row for each profile of each graph; sizes in MB."""
    sm = ", ".join(f"SM{capability}" for capability in result["capabilities"])
    title = f"{result['bundle']} by {result['compiler']} for {sm}; sizes in MB"
    made = table(title, "graph", "profile", *EXPLANATIONS)
    made.columns[1].justify = "left"
    for graph in result["graphs"]:
        if graph["error"]:
            made.add_row(graph["name"], "not compiled")
        for number, profile in enumerate(graph["profiles"]):
            layers = graph["layers"]
            made.add_row(
                graph["name"] if number == 0 else "",
                profile["name"],
                str(profile["kernels"]),
                f"{profile['kernels'] / layers:.1f}" if layers else NONE,
                f"{profile['attention']}/{layers}" if layers else str(profile["attention"] or NONE),
                str(len(profile["copies"])),
                megabytes(graph["plan"]) if number == 0 else "",
                megabytes(profile["scratch"]),
                *(NONE if profile[name] is None else megabytes(profile[name]) for name in ("moved", "least")),
                times(profile["ratio"]),
            )
    return made
