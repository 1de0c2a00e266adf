# SPDX-License-Identifier: Apache-2.0
"""Tables printed by several commands."""

from __future__ import annotations

from typing import Any

from rich.table import Table

KINDS = {"prune": "", "route": " (route)", "vision": " (encoder)", "downsample": " (smaller image)"}


def table(title: str, *columns: str) -> Table:
    """Return an empty table with one text column, then right-aligned columns."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made


def schedules(found: dict[str, Any]) -> Table:
    """Return gates and budget of each schedule, from `calibration_options.summary`."""
    made = table("Schedules", "schedule", "gates (layer: kept)", "tokens", "pruned", "FLOPs")
    for name, schedule in found.items():
        gates = ", ".join(_runs(schedule["gates"])) or "none"
        cost = schedule["budget"]
        made.add_row(
            name,
            gates,
            f"{cost['average_tokens']:.1f}",
            f"{cost['compression']:.1%}",
            f"{cost['prefill_flops_ratio']:.3f}",
        )
    return made


def _runs(gates: list[dict[str, Any]]) -> list[str]:
    """Return "3: 288" for each gate, or one "0..15: 48" for routing gates with equal counts, with the kind."""
    made = [f"{g['layer']}: {g['keep']}{KINDS[g['kind']]}" for g in gates]
    return [f"{gates[0]['layer']}..{made[-1]}"] if _alike(gates, "keep") else made


def receipt(gates: list[dict[str, Any]]) -> str:
    """Return the effect of the gates in one line, from `Receipt.as_dict`."""
    made = [f"layer {g['layer']}: {g['before']} -> {g['applied']} vision tokens{KINDS[g['kind']]}" for g in gates]
    if _alike(gates, "applied"):
        return (
            f"layers {gates[0]['layer']} to {gates[-1]['layer']}: {made[-1].partition(': ')[2]}, chosen again at each"
        )
    return "; ".join(made) or "nothing pruned"


def _alike(gates: list[dict[str, Any]], count: str) -> bool:
    """Return whether the gates are many routing gates with the same count."""
    return len(gates) > 2 and {(g["kind"], g[count]) for g in gates} == {("route", gates[0][count])}


def parity(checks: list[dict[str, Any]]) -> Table:
    """Return the worst error of each graph and of the whole chain."""
    made = table("Difference from torch", "checked", "worst relative", "allowed", "")
    for check in checks:
        made.add_row(
            check["name"], f"{check['error']:.2g}", f"{check['tolerance']:.2g}", "ok" if check["passed"] else "FAILED"
        )
    return made


PER_LAYER = ("similarity_below_tau", "attention_to_vision", "mean_kl", "staircase")


def calibration(measured: dict[str, Any]) -> Table:
    """Return the measurements of calibration: one row per layer, values of the whole model in the caption."""
    columns: dict[str, dict[int, Any]] = {}
    for name in PER_LAYER:
        if measured.get(name):
            columns[name] = dict(enumerate(measured[name]))
    rest = dict(measured)
    if _are_rows(measured.get("layers")):
        for row in rest.pop("layers"):
            for name, value in row.items():
                columns.setdefault(name, {})[row["layer"]] = value
        columns.pop("layer")
    made = table("Calibration", "layer", *(name.replace("_", " ") for name in columns))
    for layer in sorted(set().union(*columns.values())) if columns else []:
        made.add_row(str(layer), *(_number(column.get(layer)) for column in columns.values()))
    made.caption = ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in rest.items() if k not in columns)
    made.caption_justify = "left"
    return made


def _are_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
    return "" if value is None else str(value)


def _short(value: Any) -> str:
    """Format a value; a long list as its length and range."""
    if isinstance(value, list) and len(value) > 8 and all(isinstance(v, int | float) for v in value):
        return f"{len(value)} values from {min(value):.3g} to {max(value):.3g}"
    return str(value)
