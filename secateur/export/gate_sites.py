# SPDX-License-Identifier: Apache-2.0
"""The gates of a schedule with their selectors and the views that reach them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from secateur import methods, plugins
from secateur.bundle.layout import Layout
from secateur.bundle.manifest import GateRef
from secateur.bundle.schedule import ENCODER_GATES, Gate, Schedule
from secateur.errors import BadSchedule
from secateur.export.gates import tensors_read
from secateur.export.interface import is_encoder
from secateur.export.spans import Spans, ViewSpan
from secateur.families.base import Family
from secateur.methods.base import Method
from secateur.selection.selector import GateSite, Selector


@dataclass(frozen=True)
class PlacedGate:
    """A gate of a schedule, with its selectors and views.

    name       name of its graph
    selectors  one per view, of one image if the gate is in the encoder; views of equal size and settings share one;
               empty for a downsample gate
    before     the views before the gate, one after the other; complete for a routing gate
    routed     the views as left by a preceding routing gate, if any
    since      layer of that gate; for others the gate's own
    """

    name: str
    schedule: Schedule
    gate: Gate
    selectors: tuple[Selector, ...]
    before: Spans
    routed: Spans | None
    since: int

    @property
    def reads(self) -> tuple[str, ...]:
        return tensors_read(self.selectors)

    @property
    def keep(self) -> int:
        """Number of vision tokens kept: of the prompt, or of one image if the gate is in the encoder."""
        return sum(part.keep for part in self.gate.of_views[: len(self.before.views)])

    @property
    def ref(self) -> GateRef:
        gate = self.gate
        return GateRef(gate.layer, self.name, gate.keep, gate.kind, tuple(part.keep for part in gate.parts))


def spans(layout: Layout, kept: Sequence[int]) -> Spans:
    """Return the views of a prompt with `kept` tokens left of each, one view after the other.

    Views that interleave are reordered before the gate, see interleaved_views.py.
    """
    found, first, counts = [], 0, iter(kept)
    for (start, _), run in zip(layout.pruned(tuple(kept)), layout.runs, strict=True):
        for view in run:
            found.append(ViewSpan(start, next(counts), first))
            start, first = found[-1].rows.stop, first + view.tokens
    return Spans(tuple(found))


def place_gates(family: Family, layout: Layout, schedule: Schedule, suffix: str = "") -> list[PlacedGate]:
    """Return the gates of a schedule; `suffix` is appended to the schedule's name in the names of their graphs.

    Raises:
        UnknownName: the method of the schedule does not exist.
        BadSchedule: a gate's constants do not fit its method or its position.
    """
    method = plugins.load(methods, schedule.method, "method").Method
    placed = []
    if schedule.positions == "compact" and not layout.counted:
        raise BadSchedule(
            f"schedule '{schedule.name}' needs compact positions, but those of '{family.name}' are not a plain count; "
            "use --positions original"
        )
    whole = spans(layout, [view.tokens for view in layout.views])
    alive, routed, since = whole, None, 0
    for number, gate in enumerate(schedule.gates):
        if len(gate.of_views) != len(layout.views):
            raise BadSchedule(
                f"schedule '{schedule.name}': the gate at layer {gate.layer} is for {len(gate.of_views)} views, "
                f"the prompt has {len(layout.views)}; calibrate it again"
            )
        before = whole if gate.kind == "route" else alive
        if gate.kind in ENCODER_GATES:
            if gate.of_views != gate.of_views[: len(layout.image_views)] * layout.images:
                raise BadSchedule(
                    f"schedule '{schedule.name}': the '{gate.kind}' gate differs between the {layout.images} images, "
                    "but one graph serves them all; give every image the same parts"
                )
            before = _views_of_image(before, layout)
        selectors: tuple[Selector, ...] = ()
        if gate.kind != "downsample":
            selectors = _selectors(method, family, layout, schedule, gate, before)
        _check_reads(schedule, gate, selectors)
        name, since = f"{schedule.name}{suffix}.{number}", since if routed else gate.layer
        placed.append(PlacedGate(name, schedule, gate, selectors, before, routed, since))
        left = spans(layout, [part.keep for part in gate.of_views])
        alive, routed = (whole, left) if gate.kind == "route" else (left, None)
        since = gate.layer
    return placed


def _views_of_image(found: Spans, layout: Layout) -> Spans:
    """Return the views among the features of one image, which contain vision tokens only."""
    views = found.views[: len(layout.image_views)]
    return Spans(tuple(ViewSpan(view.first, view.tokens, view.first) for view in views))


def _selectors(
    method: type[Method], family: Family, layout: Layout, schedule: Schedule, gate: Gate, before: Spans
) -> tuple[Selector, ...]:
    """Return one selector per view; views of equal size and settings share one.

    A selector sees its view directly after the text that comes before the first view.
    """
    made, found = dict[str, Selector](), []
    projections = family.decoder.projections(gate.layer) if gate.kind == "route" else None
    for part, span, view in zip(gate.of_views, before.views, layout.views, strict=False):
        key = json.dumps([asdict(part), span.tokens, view.grid], sort_keys=True)
        if key not in made:
            site = Gate(gate.layer, part.keep, gate.kind, part.selector)
            start, ours = layout.image_start, part.tensors
            own = {name.removeprefix(ours): x for name, x in schedule.tensors.items() if name.startswith(ours)}
            made[key] = method.choose(
                GateSite(site, span.tokens, start, view.grid, family.dimensions, own, projections)
            )
        found.append(made[key])
    return tuple(found)


def _check_reads(schedule: Schedule, gate: Gate, selectors: Sequence[Selector]) -> None:
    who = f"schedule '{schedule.name}': method '{schedule.method}'"
    for name in (name for selector in selectors for name in selector.reads):
        if is_encoder(name) != (gate.kind == "vision") or gate.kind == "route":
            raise BadSchedule(f"{who} reads '{name}', which a gate of kind '{gate.kind}' does not have")
        if gate.kind == "prune" and gate.layer == 0:
            raise BadSchedule(f"{who} scores by the previous layer, so its first gate must be at layer 1 or later")
        if name == "text_query" and schedule.positions == "compact":
            raise BadSchedule(f"{who} finds the question by its original positions; use --positions original")
