# SPDX-License-Identifier: Apache-2.0
"""Tables that commands print."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made


def schedules(found: dict[str, Any]) -> Table:
    """Gates and budget of each schedule, from `_options.summary`: average tokens and FLOPs ratio of vision rows."""
    made = table("Schedules", "schedule", "gates (layer: kept)", "tokens", "pruned", "FLOPs")
    for name, schedule in found.items():
        gates = ", ".join(f"{g['layer']}: {g['keep']}" for g in schedule["gates"]) or "none"
        cost = schedule["budget"]
        made.add_row(
            name,
            gates,
            f"{cost['average_tokens']:.1f}",
            f"{cost['compression']:.1%}",
            f"{cost['prefill_flops_ratio']:.3f}",
        )
    return made


def parity(checks: list[dict[str, Any]]) -> Table:
    """Worst error of each graph and of the whole chain."""
    made = table("Difference from torch", "checked", "worst relative", "allowed", "")
    for check in checks:
        made.add_row(
            check["name"], f"{check['error']:.2g}", f"{check['tolerance']:.2g}", "ok" if check["passed"] else "FAILED"
        )
    return made


def calibration(measured: dict[str, Any]) -> Table:
    """What calibration found: a row for each layer where something was measured, the rest as the caption."""
    per_layer = {k: measured[k] for k in ("similarity_below_tau", "attention_to_vision") if measured.get(k)}
    longest = max((len(v) for v in per_layer.values()), default=0)
    made = table("Calibration", "layer", *(k.replace("_", " ") for k in per_layer))
    for layer in range(longest):
        made.add_row(str(layer), *(f"{v[layer]:.3f}" for v in per_layer.values()))
    made.caption = ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in measured.items() if k not in per_layer)
    made.caption_justify = "left"
    return made
