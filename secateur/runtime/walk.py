# SPDX-License-Identifier: Apache-2.0
"""The graphs that a schedule runs and the sizes it runs them at, told from the manifest alone.

The same walk as chain.py, in numbers: rows in front of the image, vision tokens that are still alive, text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from secateur.artifacts import ENCODER_GATES, FULL, Manifest
from secateur.errors import UnknownName

USUAL_TEXT = 32
"""Rows behind the image of an ordinary question with its template; shorter if the limits are."""


@dataclass(frozen=True)
class Step:
    """One run of a graph. `symbols` are the sizes S, P, T or n of its inputs, as far as it has them; B is left open."""

    graph: str
    kind: str
    symbols: dict[str, int]


def prefill(manifest: Manifest, schedule: str, text: int, past: int = 0) -> Iterator[Step]:
    """Everything from the image to the first token.

    text  rows behind the image
    past  masked rows that the empty cache is given
    """
    layout, gates = manifest.layout, manifest.schedules[schedule].gates
    alive = layout.vision_tokens
    encoder = next((gate for gate in gates if gate.kind in ENCODER_GATES), None)
    if encoder is None or encoder.kind == "vision":
        yield Step("vision", "encode", {})
    if encoder is not None:
        alive = encoder.keep
        yield Step(encoder.graph, "encode", {})
    yield Step("projector", "encode", {"n": alive})
    every = layout.image_start + alive + text
    yield Step("embed", "prefill", {"T": every})
    before = {gate.layer: gate for gate in gates if gate is not encoder}
    for segment in manifest.segments:
        if gate := before.get(segment.layers[0] if segment.layers else -1):
            rows = every if gate.kind == "route" else layout.image_start + alive + text
            yield Step(gate.graph, "prefill", {"S": rows})
            alive = gate.keep
        yield Step(segment.name, "prefill", {"P": past, "S": layout.image_start + alive + text})


def decode(manifest: Manifest, schedule: str, capacity: int, past: int = 0) -> Iterator[Step]:
    """One further token, which attends over the whole cache, filled or not; see steps.py.

    capacity  rows of the cache before any gate; segments behind a gate have fewer
    past      masked rows at its beginning
    """
    layout = manifest.layout
    yield Step("embed", "decode", {"T": 1})
    for step in prefill(manifest, schedule, capacity - layout.image_start - layout.vision_tokens):
        if "P" in step.symbols:
            yield Step(step.graph, "decode", {"P": step.symbols["S"] + past, "S": 1})


def usual_schedule(manifest: Manifest, name: str | None = None) -> str:
    """The schedule that the profiles are best at: `name`, else the only one with gates, else the one of median rows.

    Raises:
        UnknownName: the bundle has no schedule `name`.
    """
    if name is not None:
        if name not in manifest.schedules:
            raise UnknownName("schedule", name, manifest.schedules)
        return name
    pruned = [n for n in manifest.schedules if n != FULL]
    ranked = sorted(pruned, key=lambda n: (_rows(manifest, n), n))
    return ranked[(len(ranked) - 1) // 2] if ranked else FULL


def _rows(manifest: Manifest, schedule: str) -> int:
    """Rows that the decoder layers read, summed."""
    layers = {s.name: s.layers[1] - s.layers[0] for s in manifest.segments if s.layers}
    steps = prefill(manifest, schedule, 0)
    return sum(layers[step.graph] * step.symbols["S"] for step in steps if step.graph in layers)
