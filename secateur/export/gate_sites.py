# SPDX-License-Identifier: Apache-2.0
"""The gates of a schedule, each with its selectors and told where it stands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from secateur import methods, plugins
from secateur.bundle.layout import Layout
from secateur.bundle.manifest import GateRef
from secateur.bundle.schedule import ENCODER_GATES, Gate, Schedule
from secateur.errors import BadSchedule
from secateur.export.gates import names
from secateur.export.interface import is_encoder
from secateur.export.spans import Spans, ViewSpan
from secateur.families.base import Family
from secateur.methods.base import Method
from secateur.selection.selector import GateSite, Selector


@dataclass(frozen=True)
class Placed:
    """A gate of a schedule.

    name       of its graph
    selectors  one for each view, of one image if the gate stands in the encoder, and the same one for views that
               are alike; none for a smaller image
    before     the views as the gate finds them, one behind the other; a routing gate finds them whole
    routed     what a routing gate before left of them
    """

    name: str
    schedule: Schedule
    gate: Gate
    selectors: tuple[Selector, ...]
    before: Spans
    routed: Spans | None

    @property
    def reads(self) -> tuple[str, ...]:
        return names(self.selectors)

    @property
    def keep(self) -> int:
        """Vision tokens that stay: of the prompt, or of one image if the gate stands in the encoder."""
        return sum(part.keep for part in self.gate.of_views[: len(self.before.views)])

    @property
    def ref(self) -> GateRef:
        gate = self.gate
        return GateRef(gate.layer, self.name, gate.keep, gate.kind, tuple(part.keep for part in gate.parts))


def spans(layout: Layout, kept: Sequence[int]) -> Spans:
    """The views of a prompt of which `kept` tokens each are alive, one view behind the other, see woven.py."""
    found, first, counts = [], 0, iter(kept)
    for (start, _), run in zip(layout.pruned(tuple(kept)), layout.runs, strict=True):
        for view in run:
            found.append(ViewSpan(start, next(counts), first))
            start, first = found[-1].rows.stop, first + view.tokens
    return Spans(tuple(found))


def place(family: Family, layout: Layout, schedule: Schedule, suffix: str = "") -> list[Placed]:
    """The gates of a schedule; `suffix` goes into the names of their graphs.

    Raises:
        UnknownName: the schedule names a method that does not exist.
        BadSchedule: a gate's constants do not fit its method or place.
    """
    method = plugins.load(methods, schedule.method, "method").Method
    placed = []
    if schedule.positions == "compact" and not layout.counted:
        raise BadSchedule(
            f"schedule '{schedule.name}' counts positions anew, but those of '{family.name}' are not a count; "
            "use --positions original"
        )
    whole = spans(layout, [view.tokens for view in layout.views])
    alive, routed = whole, None
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
            before = _of_an_image(before, layout)
        selectors: tuple[Selector, ...] = ()
        if gate.kind != "downsample":
            selectors = _selectors(method, family, layout, schedule, gate, before)
        _check_reads(schedule, gate, selectors)
        placed.append(Placed(f"{schedule.name}{suffix}.{number}", schedule, gate, selectors, before, routed))
        left = spans(layout, [part.keep for part in gate.of_views])
        alive, routed = (whole, left) if gate.kind == "route" else (left, None)
    return placed


def _of_an_image(found: Spans, layout: Layout) -> Spans:
    """Views among the features of one image, which are nothing but vision tokens."""
    views = found.views[: len(layout.image_views)]
    return Spans(tuple(ViewSpan(view.first, view.tokens, view.first) for view in views))


def _selectors(
    method: type[Method], family: Family, layout: Layout, schedule: Schedule, gate: Gate, before: Spans
) -> tuple[Selector, ...]:
    """One for each view, alone behind the text in front of the first one; views that are alike share theirs."""
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
            raise BadSchedule(f"{who} scores by the layer before, so its first gate must be at layer 1 or later, not 0")
        if name == "text_query" and schedule.positions == "compact":
            raise BadSchedule(f"{who} finds the question by its original positions; use --positions original")
