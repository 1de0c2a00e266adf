# SPDX-License-Identifier: Apache-2.0
"""Tables of `secateur inspect`: image sizes, lint for TensorRT, effect of half precision."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.terminal import tables


def image_sizes(found: list[dict[str, Any]]) -> Table:
    """Return the image sizes of a bundle with the views of an image; adjacent equal views are counted."""
    table = tables.table("Image sizes", "size", "images", "rows", "vision tokens", "fit", "views")
    for size in found:
        runs = [(len(list(alike)), grid) for grid, alike in groupby(size["views"])]
        views = ", ".join(f"{count} of {rows} x {columns}" for count, (rows, columns) in runs)
        numbers = [str(size[name]) for name in ("images", "rows", "vision_tokens")]
        table.add_row(size["size"], *numbers, size["fit"] or "", views)
    return table


def lint(found: dict[str, Any], console: Console) -> None:
    """Print the operators of a bundle and the nodes that a TensorRT version does not support."""
    if "skipped" in found:
        console.print(f"not linted for TensorRT: {found['skipped']}", markup=False)
        return
    sources = list(dict.fromkeys(used["source"] for used in found["operators"]))
    table = Table(title=f"TensorRT {found['tensorrt']}", title_justify="left", title_style="bold")
    for column in ("operator", "nodes", "", "source"):
        table.add_column(column, justify="left" if column in ("operator", "") else "right")
    for used in found["operators"]:
        verdict = "ok" if used["ok"] else "REFUSED"
        table.add_row(used["operator"], str(used["count"]), verdict, str(sources.index(used["source"]) + 1))
    console.print(table)
    for number, source in enumerate(sources, start=1):
        console.print(f"source {number}: {source}", markup=False)
    if found["caution"]:
        console.print(f"note: {found['caution']}", markup=False)
    places: dict[str, list[str]] = {}
    for finding in found["findings"]:
        what = f"{finding['operator']}: {finding['problem']}; {finding['mend']} ({finding['source']})"
        places.setdefault(what, []).append(f"graph '{finding['graph']}', node '{finding['node']}'")
    for what, where in places.items():
        console.print(f"{what}: {len(where)} times, first {where[0]}", markup=False)


def precision(found: dict[str, Any], console: Console) -> None:
    """Print the differences between a bundle and its checkpoint in fp32."""
    console.print(f"{found['dtype']} against fp32, {found['questions']} questions")
    for table in (_logits(found), _kept(found), _activations(found)):
        console.print(table)


def _logits(found: dict[str, Any]) -> Table:
    """Return errors of the logits, shares of equal first tokens and, if known, of right answers."""
    scored = any(schedule["answers"] for schedule in found["schedules"])
    columns = ["error", "relative", "token"] + (["answer", "right", "in fp32"] if scored else [])
    title = "Logits, and share of equal first tokens and answers"
    table = tables.table(title, "schedule", *columns)
    for schedule in found["schedules"]:
        row = [f"{schedule['logits_error']:.2g}", f"{schedule['relative_error']:.2g}", f"{schedule['same_token']:.1%}"]
        if answers := schedule["answers"]:
            row += [f"{answers[name]:.1%}" for name in ("same", "accuracy", "accuracy_fp32")]
        table.add_row(schedule["schedule"], *row)
    return table


def _kept(found: dict[str, Any]) -> Table:
    """Return the share of the kept tokens that are also kept in fp32."""
    table = tables.table(
        "Kept tokens that are also kept in fp32", "schedule", "gates", "mean", "worst gate", "worst question"
    )
    for schedule in found["schedules"]:
        if gates := schedule["gates"]:
            worst = (f"{min(gate['mean'] for gate in gates):.4f}", f"{min(gate['worst'] for gate in gates):.3f}")
            table.add_row(schedule["schedule"], str(len(gates)), f"{schedule['overlap']:.4f}", *worst)
    return table


def _activations(found: dict[str, Any]) -> Table:
    table = tables.table("Largest activations", "graph", "largest", "headroom to 65504")
    for activation in found["activations"]:
        table.add_row(activation["graph"], f"{activation['largest']:.4g}", f"{activation['headroom']:.0f} x")
    return table
