# SPDX-License-Identifier: Apache-2.0
"""Tables of a bundle: schedules, calibration, checks, image sizes, lint, precision."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.bundle.sampling import Sampling
from secateur.errors import shortened

DRAWS = ("top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "seed")
"""Settings without effect on the most likely tokens."""
KINDS = {"prune": "", "route": " (route)", "vision": " (encoder)", "downsample": " (smaller image)"}


def table(title: str, *columns: str) -> Table:
    """Return an empty table with one text column, then right-aligned columns."""
    made = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i == 0 else "right")
    return made


def checkpoint(found: dict[str, Any], console: Console) -> None:
    """Print the files, settings and tensors of a checkpoint, its warnings, and what it is."""
    made = table("Contents", "name", "kind", "use")
    for item in found["items"]:
        made.add_row(item["name"], item["kind"], item["use"] + (f": {item['note']}" if item["note"] else ""))
    console.print(made)
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if "family" in found:
        about = f"{found['family']}, {found['vision_tokens']} vision tokens"
        console.print(
            f"{found['checkpoint']}: {about}; it can be calibrated and exported", markup=False, soft_wrap=True
        )


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
    return [f"{gates[0]['layer']}..{made[-1]}"] if _equal_routes(gates, "keep") else made


def receipt(gates: list[dict[str, Any]]) -> str:
    """Return the effect of the gates in one line, from `Receipt.as_dict`."""
    made = [f"layer {g['layer']}: {g['before']} -> {g['applied']} vision tokens{KINDS[g['kind']]}" for g in gates]
    if _equal_routes(gates, "applied"):
        return (
            f"layers {gates[0]['layer']} to {gates[-1]['layer']}: {made[-1].partition(': ')[2]}, chosen again at each"
        )
    return "; ".join(made) or "nothing pruned"


def settings(sampling: dict[str, Any]) -> str:
    """Return the settings of an answer that are in force in one line."""
    changed = Sampling(**sampling).changed()
    changed.pop("max_new_tokens", None)
    if not sampling["temperature"]:
        changed = {name: value for name, value in changed.items() if name not in DRAWS}
    how = "random draws" if sampling["temperature"] else "the most likely tokens"
    listed = "".join(f", {name} {list(v) if isinstance(v, tuple) else v}" for name, v in changed.items())
    return f"{how}, at most {sampling['max_new_tokens']}{shortened(listed)}"


def _equal_routes(gates: list[dict[str, Any]], count: str) -> bool:
    """Return whether the gates are many routing gates with the same count."""
    return len(gates) > 2 and {(g["kind"], g[count]) for g in gates} == {("route", gates[0][count])}


def parity(checks: list[dict[str, Any]], every: bool = False) -> Table:
    """Return the worst error of each graph and of the whole chain, see `grouped`."""
    made = table("Difference from torch", "checked", "worst relative", "allowed", "")
    for name, rows in grouped(checks, "name", every).items():
        worst = max(rows, key=lambda check: check["error"])
        numbers = f"{worst['error']:.2g}", f"{worst['tolerance']:.2g}"
        made.add_row(name, *numbers, "ok" if worst["passed"] else "FAILED")
    return made


GROUPS = {
    "chain, .*": "chains",
    "other tokens kept, .*": "chains, other tokens kept",
    r"segment_\d+": "segments",
    r".*\.\d+": "gates",
}
"""Patterns of the names of checks that are shown in one row, and the names of these rows."""


def grouped(rows: list[dict[str, Any]], name: str, every: bool = False) -> dict[str, list[dict[str, Any]]]:
    """Group the passed checks of each kind, as "48 gates"; failed checks, and with `every` all, stay alone.

    name  field of a row with the name of what was checked
    """
    groups = dict[str, list[dict[str, Any]]]()
    for row in rows:
        kind = next((group for pattern, group in GROUPS.items() if re.fullmatch(pattern, row[name])), row[name])
        groups.setdefault(row[name] if every or not row["passed"] else kind, []).append(row)
    return {f"{len(own)} {group}" if len(own) > 1 else own[0][name]: own for group, own in groups.items()}


PER_LAYER = ("similarity_below_tau", "attention_to_vision", "mean_kl", "staircase")


def calibration(measured: dict[str, Any]) -> Table:
    """Return the measurements of calibration: one row per layer, values of the whole model in the caption."""
    columns: dict[str, dict[int, Any]]
    columns = {name: dict(enumerate(measured[name])) for name in PER_LAYER if measured.get(name)}
    rest = dict(measured)
    rows = measured.get("layers")
    if isinstance(rows, list) and rows and isinstance(rows[0], dict):
        del rest["layers"]
        for row in rows:
            for name, value in row.items():
                columns.setdefault(name, {})[row["layer"]] = value
        columns.pop("layer")
    made = table("Calibration", "layer", *(name.replace("_", " ") for name in columns))
    for layer in sorted(set().union(*columns.values())) if columns else []:
        made.add_row(str(layer), *(_number(column.get(layer)) for column in columns.values()))
    shown = {k: v for k, v in rest.items() if k not in columns and v not in (None, "")}
    made.caption = ", ".join(f"{k.replace('_', ' ')} {_short(v)}" for k, v in shown.items())
    made.caption_justify = "left"
    return made


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or abs(value) >= 0.01 else f"{value:.2g}"
    return "" if value is None else str(value)


def _short(value: Any) -> str:
    """Format a value; a long list as its length and range."""
    if isinstance(value, list) and len(value) > 8 and all(isinstance(v, int | float) for v in value):
        return f"{len(value)} values from {min(value):.3g} to {max(value):.3g}"
    return str(value)


def image_sizes(found: list[dict[str, Any]]) -> Table:
    """Return the image sizes of a bundle with the views of an image; adjacent equal views are counted."""
    made = table("Image sizes", "size", "images", "rows", "vision tokens", "fit", "views")
    for size in found:
        runs = [(len(list(alike)), grid) for grid, alike in groupby(size["views"])]
        views = ", ".join(f"{count} of {rows} x {columns}" for count, (rows, columns) in runs)
        numbers = [str(size[name]) for name in ("images", "rows", "vision_tokens")]
        made.add_row(size["size"], *numbers, size["fit"] or "", views)
    return made


def lint(found: dict[str, Any], console: Console) -> None:
    """Print the operators of a bundle and the nodes that a TensorRT version does not support."""
    if "skipped" in found:
        console.print(f"not linted for TensorRT: {found['skipped']}", markup=False)
        return
    sources = list(dict.fromkeys(used["source"] for used in found["operators"]))
    made = table(f"TensorRT {found['tensorrt']}", "operator", "nodes", "", "source")
    made.columns[2].justify = "left"
    for used in found["operators"]:
        verdict = "ok" if used["ok"] else "REFUSED"
        made.add_row(used["operator"], str(used["count"]), verdict, str(sources.index(used["source"]) + 1))
    console.print(made)
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
    for made in (_logits(found), _kept(found), _activations(found)):
        console.print(made)


def _logits(found: dict[str, Any]) -> Table:
    """Return errors of the logits, shares of equal first tokens and, if known, of right answers."""
    scored = any(schedule["answers"] for schedule in found["schedules"])
    columns = ["error", "relative", "token"] + (["answer", "right", "in fp32"] if scored else [])
    title = "Logits, and share of equal first tokens and answers"
    made = table(title, "schedule", *columns)
    for schedule in found["schedules"]:
        row = [f"{schedule['logits_error']:.2g}", f"{schedule['relative_error']:.2g}", f"{schedule['same_token']:.1%}"]
        if answers := schedule["answers"]:
            row += [f"{answers[name]:.1%}" for name in ("same", "accuracy", "accuracy_fp32")]
        made.add_row(schedule["schedule"], *row)
    return made


def _kept(found: dict[str, Any]) -> Table:
    """Return the share of the kept tokens that are also kept in fp32."""
    made = table("Kept tokens that are also kept in fp32", "schedule", "gates", "mean", "worst gate", "worst question")
    for schedule in found["schedules"]:
        if gates := schedule["gates"]:
            worst = (f"{min(gate['mean'] for gate in gates):.4f}", f"{min(gate['worst'] for gate in gates):.3f}")
            made.add_row(schedule["schedule"], str(len(gates)), f"{schedule['overlap']:.4f}", *worst)
    return made


def _activations(found: dict[str, Any]) -> Table:
    made = table("Largest activations", "graph", "largest", "headroom to 65504")
    for activation in found["activations"]:
        made.add_row(activation["graph"], f"{activation['largest']:.4g}", f"{activation['headroom']:.0f} x")
    return made
