# SPDX-License-Identifier: Apache-2.0
"""List the graphs that a schedule runs, with their sizes, from the manifest alone.

The order is that of runtime/chain.py. `prefill` and `decode` use the first image size of a manifest; `runs` returns a
manifest for every size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from secateur.bundle.layout import Layout
from secateur.bundle.manifest import GraphSpec, Manifest
from secateur.bundle.schedule import ENCODER_GATES, FULL
from secateur.errors import UnknownName

USUAL_TEXT = 32
"""Assumed rows of a question with its template; fewer if the limits are lower."""


@dataclass(frozen=True)
class GraphRun:
    """One run of a graph. `symbols` has the values of those of S, P, T and n that occur in its input shapes.

    The batch size B is `images` times the number of samples; `images` is above 1 only for graphs of the encoder.
    """

    graph: str
    kind: str
    symbols: dict[str, int]
    images: int = 1


class SizedSchedule(NamedTuple):
    """A schedule for one image size; `manifest` contains only this size."""

    manifest: Manifest
    schedule: str


def runs(manifest: Manifest, names: Iterable[str] | None = None) -> dict[str, SizedSchedule]:
    """Return every schedule, or those in `names`, for every image size.

    The key is the name of the schedule, followed by @WIDTHxHEIGHT if the bundle has several sizes.
    """
    buckets = manifest.buckets
    return {
        name if len(buckets) == 1 else f"{name}@{bucket.layout.size}": SizedSchedule(bucket, name)
        for bucket in buckets
        for name in (bucket.schedules if names is None else names)
    }


def largest(manifest: Manifest) -> Layout:
    """Return the layout with the most rows among all image sizes."""
    return max((bucket.layout for bucket in manifest.buckets), key=lambda layout: layout.rows)


def prefill(manifest: Manifest, schedule: str, text: int, past: int = 0) -> Iterator[GraphRun]:
    """Yield the runs from the image to the first token.

    text  rows after the images
    past  masked rows at the beginning of the cache
    """
    layout, gates = manifest.layout, manifest.schedules[schedule].gates
    alive = layout.vision_tokens
    encoder = next((gate for gate in gates if gate.kind in ENCODER_GATES), None)
    if encoder is None or encoder.kind == "vision":
        yield GraphRun(layout.vision, "encode", {}, layout.images)
    if encoder is not None:
        alive = encoder.keep
        yield GraphRun(encoder.graph, "encode", {}, layout.images)
    yield GraphRun("projector", "encode", {"n": alive // layout.images}, layout.images)
    fixed = len(layout.head)
    every = fixed + alive + text
    yield GraphRun("embed", "prefill", {"T": every})
    before = {gate.layer: gate for gate in gates if gate is not encoder}
    turned = False
    for segment in manifest.segments:
        if gate := before.get(segment.layers[0] if segment.layers else -1):
            rows = every if gate.kind == "route" else fixed + alive + text
            yield GraphRun(gate.graph, "prefill", {"S": rows})
            alive, turned = gate.keep, False
        rows = fixed + alive + text
        if not turned and reads_rotary(segment):
            yield GraphRun("rotary", "prefill", {"S": rows})
            turned = True
        yield GraphRun(segment.name, "prefill", {"P": past, "S": rows})


def decode(manifest: Manifest, schedule: str, capacity: int, past: int = 0) -> Iterator[GraphRun]:
    """Yield the runs of one decode step, which attends to the whole cache, filled or not; see RecordedStep.

    capacity  rows of the cache before any gate; segments after a gate have fewer
    past      masked rows at the beginning of the cache
    """
    yield GraphRun("embed", "decode", {"T": 1})
    if any(map(reads_rotary, manifest.segments)):
        yield GraphRun("rotary", "decode", {"S": 1})
    for step in prefill(manifest, schedule, capacity - manifest.layout.rows):
        if "P" in step.symbols:
            yield GraphRun(step.graph, "decode", {"P": step.symbols["S"] + past, "S": 1})


def dropped(manifest: Manifest, schedule: str) -> list[int]:
    """Return the number of vision tokens dropped before each segment."""
    total = alive = manifest.layout.vision_tokens
    gates = {gate.layer: gate for gate in manifest.schedules[schedule].gates}
    found = []
    for segment in manifest.segments:
        if segment.layers and (gate := gates.get(segment.layers[0])):
            alive = gate.keep
        found.append(total - alive)
    return found


def reads_rotary(segment: GraphSpec) -> bool:
    """Return whether a segment reads the tables of the graph "rotary"."""
    return any(spec.name == "rotary_cos" for spec in segment.inputs)


def usual_schedule(manifest: Manifest, name: str | None = None) -> str:
    """Return the schedule to optimize profiles for: `name`, or else the pruned one with the median number of rows.

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
    """Return the number of rows that decoder layers read, summed over the layers."""
    layers = {s.name: s.layers[1] - s.layers[0] for s in manifest.segments if s.layers}
    steps = prefill(manifest, schedule, 0)
    return sum(layers[step.graph] * step.symbols["S"] for step in steps if step.graph in layers)
