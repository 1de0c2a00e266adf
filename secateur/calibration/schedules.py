# SPDX-License-Identifier: Apache-2.0
"""Make schedules from measurements, also for prompts with several views (images or tiles).

A method is calibrated on one view, as if the prompt had no other, and prunes every view alike. Views of another size
(LLaVA-NeXT: tiles at the right edge have line breaks, outer tiles lose their padding) are calibrated separately, with
the same gates and the same shares. A view of one token (LLaVA-OneVision: the line break after one of several images)
leaves nothing to choose: it is kept as long as any token of the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from secateur.bundle.schedule import ENCODER_GATES, Array, Gate, Schedule, ViewGate
from secateur.calibration.against_random import SAMPLES, chooses, compared
from secateur.calibration.capture import capture, sizes_of_views
from secateur.calibration.samples import Sample
from secateur.calibration.samples import samples as read_samples
from secateur.checkpoints.hub import DEMO
from secateur.errors import BadSchedule
from secateur.families.base import Family
from secateur.methods.base import Method
from secateur.progress import Progress, silent
from secateur.selection.budget import BudgetRequest, budget, schedule_name
from secateur.selection.statistics import Statistics


def measure(
    family: Family,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    seed: int = 0,
    progress: Progress = silent,
    work: Path | None = None,
) -> list[Statistics]:
    """Return the statistics of each size of view; see `capture`."""
    measured = capture(family, samples, wanted, seed, lambda done, total: progress("measure", "", done, total), work)
    return [replace(each, progress=lambda step, done, total: progress(step, "", done, total)) for each in measured]


def make_schedules(
    family: Family,
    methods: Sequence[Method],
    requests: Sequence[BudgetRequest],
    samples: Path | Sequence[Sample] | None = None,
    sample_count: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
    work: Path | None = None,
    compare: bool = False,
) -> list[Schedule]:
    """Return the schedule of each method for each request; methods with the same number of samples share one run.

    samples       all samples to use, or where `samples.samples` reads them
    sample_count  samples to read (None: as many as each method wants)
    work          folder for the state that a killed run resumes from
    compare       compare each schedule with random tokens, if there are samples; see `against_random.compared`

    Raises:
        InputError: see `samples.samples`.
        BadSchedule: see `check` and `calibrate`.
    """
    check(family, methods, requests)
    given = None if samples is None or isinstance(samples, Path) else samples
    path = samples if isinstance(samples, Path) else None
    fixed = sample_count if given is None else len(given)
    counts = [method.samples if fixed is None else fixed for method in methods]
    measured, drawn = dict[int, list[Statistics]](), dict[int, Sequence[Sample]]()
    for count in sorted(set(counts)):
        wanted = frozenset[str]().union(*(m.statistics for m, n in zip(methods, counts, strict=True) if n == count))
        drawn[count] = given or (read_samples(family.source, path, count, seed) if wanted else [])
        measured[count] = measure(family, drawn[count], wanted, seed, progress, work)
    made = [
        (count, calibrate(method, family, measured[count], request))
        for method, count in zip(methods, counts, strict=True)
        for request in requests
    ]
    found = [schedule for _, schedule in made]
    for count in sorted(set(counts)) if compare else ():
        own = [i for i, (number, schedule) in enumerate(made) if number == count and chooses(schedule)]
        if own and not drawn[count] and (path or family.source == DEMO):
            drawn[count] = read_samples(family.source, path, min(count, SAMPLES), seed)
        if own and drawn[count]:
            against = compared(family, [found[i] for i in own], drawn[count], progress, work)
            for i, schedule in zip(own, against, strict=True):
                found[i] = schedule
    return found


def check(family: Family, methods: Sequence[Method], requests: Sequence[BudgetRequest]) -> None:
    """Check, before anything is measured, that every method can meet every request.

    Raises:
        BadSchedule: some cannot; names them all, and says why the first cannot.
    """
    unmeasured, refused = capture(family, (), frozenset()), dict[str, str]()
    for request in requests:
        for method in methods:
            try:
                method.check(unmeasured[0], request)
            except BadSchedule as problem:
                refused.setdefault(method.name, str(problem))
    if not refused:
        return
    (first, reason), *others = refused.items()
    if len(methods) == 1:
        raise BadSchedule(reason)
    also = f" (nor can {', '.join(name for name, _ in others)})" if others else ""
    raise BadSchedule(f"method {first} cannot meet the request{also}: {reason}")


def calibrate(method: Method, family: Family, statistics: Sequence[Statistics], request: BudgetRequest) -> Schedule:
    """Return the schedule of `method` for `family` from the statistics of `measure`.

    Raises:
        BadSchedule: see `Method.calibrate`; or the gates for views of different sizes are at different layers, or the
            method downsamples an image that has several views.
    """
    first = method.calibrate(statistics[0], request)
    layout = family.layout
    if len(layout.views) == 1:
        return first
    if len(layout.image_views) > 1 and any(gate.kind == "downsample" for gate in first.gates):
        raise BadSchedule(f"a smaller image needs one grid, not {len(layout.image_views)} views; use another method")
    made = [first, *(method.calibrate(each, _same_shares(first, statistics[0])) for each in statistics[1:])]
    for other in made[1:]:
        if [(g.layer, g.kind) for g in other.gates] != [(g.layer, g.kind) for g in first.gates]:
            raise BadSchedule(f"{method.name} puts its gates at other layers for views of another size; give --layers")
    prefixes = ["", *(f"view_{number}." for number in range(1, len(made)))]
    known = dict(
        zip([views[0].grid for views in sizes_of_views(layout)], zip(made, prefixes, strict=True), strict=True)
    )
    gates = []
    for number, gate in enumerate(first.gates):
        parts = tuple(_part(known.get(view.grid), number, int(gate.keep > 0)) for view in layout.views)
        gates.append(Gate(gate.layer, sum(part.keep for part in parts), gate.kind, parts=parts))
    tensors: dict[str, Array] = {}
    for prefix, schedule in zip(prefixes, made, strict=True):
        tensors |= {prefix + name: tensor for name, tensor in schedule.tensors.items()}
    cost = budget(family.dimensions, layout.vision_tokens, gates)
    further = {"views": [schedule.calibration for schedule in made[1:]]} if made[1:] else {}
    return replace(
        first,
        name=schedule_name(method.name, cost),
        model=family.identity,
        gates=tuple(gates),
        budget=cost,
        calibration=first.calibration | further,
        tensors=tensors,
    )


def _part(known: tuple[Schedule, str] | None, number: int, single: int) -> ViewGate:
    """Return gate `number` of the schedule for a view of this size; `single` is the quota of a view of one token."""
    if known is None:
        return ViewGate(single)
    schedule, prefix = known
    return ViewGate(schedule.gates[number].keep, schedule.gates[number].selector, prefix)


def _same_shares(schedule: Schedule, statistics: Statistics) -> BudgetRequest:
    """Request the same layers and shares for another number of tokens."""
    shares = tuple(gate.keep / statistics.model.vision_tokens for gate in schedule.gates)
    if schedule.gates[0].kind in (*ENCODER_GATES, "route"):
        return BudgetRequest(keep=shares[:1])
    return BudgetRequest(keep=shares, layers=tuple(gate.layer for gate in schedule.gates))
