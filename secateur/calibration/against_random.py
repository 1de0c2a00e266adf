# SPDX-License-Identifier: Apache-2.0
"""Compare schedules with random choices of the same layers and counts, on the first calibration samples.

The measure is the KL divergence of the next token, in nats: of the unpruned model from the model as the schedule prunes
it, for the method's choice and for a random one. The seed of the random choice is the number of the sample.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import to_json
from secateur.calibration.measures import divergence
from secateur.calibration.pruned_run import PrunedRun, Selectors, pruned_prompts
from secateur.calibration.resume import Resume
from secateur.calibration.samples import Sample
from secateur.checkpoints.streaming import held
from secateur.errors import SecateurWarning
from secateur.families.base import Family
from secateur.methods.random import Method as Random
from secateur.progress import Progress, silent
from secateur.selection.statistics import Floats

SAMPLES = 8
"""Samples at most: each costs two pruned prefills for each schedule, and one of the whole model for each group."""
BYTES = 2**30
"""Rows of the schedules that are run together, in fp32; the layers of a streamed model are read once for each group."""


def compared(
    family: Family,
    schedules: Sequence[Schedule],
    samples: Sequence[Sample],
    progress: Progress = silent,
    work: Path | None = None,
) -> list[Schedule]:
    """Return the schedules with `against_random` in their calibration, and warn of each that loses.

    Schedules of random tokens, and those that drop nothing or everything, are returned as they are. The block has the
    number of `samples`, the mean divergence of the `method` and of `random`, and the number of samples on which the
    method is `closer` to the unpruned model. A method loses if its mean is larger, and if it is closer on at most half
    of the samples: one outlier is not enough.

    work  folder for the state that a killed run resumes from

    Raises:
        BadImage: the file of a sample is damaged.
    """
    samples, found = samples[:SAMPLES], list(schedules)
    fits = family.layout.counted  # an export refuses compact positions otherwise
    wanted = [i for i, s in enumerate(schedules) if chooses(s) and (fits or s.positions == "original")]
    rows = family.layout.rows * family.dimensions.width * 4 * max(1, len(samples))
    size = max(1, (BYTES // rows - 1) // 2)
    for start in range(0, len(wanted) if samples else 0, size):
        group = wanted[start : start + size]
        measured = _divergences(family, [schedules[i] for i in group], samples, progress, work)
        for i, (method, random) in zip(group, measured, strict=True):
            found[i] = _recorded(schedules[i], method, random)
    return found


def chooses(schedule: Schedule) -> bool:
    """Return whether a gate of a method other than random keeps some of the tokens but not all."""
    total = schedule.model.vision_tokens
    return schedule.method != "random" and any(0 < gate.keep < total for gate in schedule.gates)


def _recorded(schedule: Schedule, method: Floats, random: Floats) -> Schedule:
    means = float(method.mean()), float(random.mean())
    closer = int((method < random).sum())
    if means[0] > means[1] and 2 * closer <= len(method):
        warnings.warn(
            f"schedule '{schedule.name}' changes the next token more than random tokens do (mean KL divergence "
            f"{means[0]:.3g} against {means[1]:.3g} on {len(method)} samples); evaluate it, or use another method",
            SecateurWarning,
            stacklevel=2,
        )
    block = {
        "samples": len(method),
        "method": round(means[0], 6),
        "random": round(means[1], 6),
        "closer": closer,
    }
    return replace(schedule, calibration=schedule.calibration | {"against_random": block})


def _divergences(
    family: Family, schedules: Sequence[Schedule], samples: Sequence[Sample], progress: Progress, work: Path | None
) -> list[tuple[Floats, Floats]]:
    """Return the divergence of each sample under each schedule, and under its random choice."""
    full = Selectors(family, replace(schedules[0], gates=(), positions="original", tensors={}))
    chosen = [Selectors(family, schedule) for schedule in schedules]
    own = [
        [full, *chosen, *(Selectors(family, Random(seed=sample).like(schedule)) for schedule in schedules)]
        for sample in range(len(samples))
    ]
    runs = [
        PrunedRun(prompt, selectors)
        for prompts, of_sample in zip(pruned_prompts(family, samples, own), own, strict=True)
        for prompt, selectors in zip(prompts, of_sample, strict=True)
    ]
    _run(
        family, runs, Resume(work, (family.fingerprint, family.layout, *map(to_json, schedules)), _rows(runs)), progress
    )
    decoder, each, found = family.decoder, len(own[0]), list[Floats]()
    with held(decoder.norm, decoder.head):
        for first in range(0, len(runs), each):
            last = torch.cat([run.rows[:, -1] for run in runs[first : first + each]])
            found.append(divergence(decoder, last[:1], last[1:]))
    by_schedule = np.stack(found, axis=1)
    return list(zip(by_schedule[: len(schedules)], by_schedule[len(schedules) :], strict=True))


@torch.no_grad()
def _run(family: Family, runs: Sequence[PrunedRun], resume: Resume, progress: Progress) -> None:
    """Run all prompts through all layers, each layer once for all."""
    depth, first = family.dimensions.layers, _restored(resume, runs, family.dimensions.layers)
    for number in range(first, depth):
        progress("compare", "", number, depth)
        resume.write(number, _rows(runs), _places(runs))
        with held(family.decoder.layers[number]):
            for run in runs:
                run.layer(number)
    progress("compare", "", depth, depth)
    resume.done()


def _rows(runs: Sequence[PrunedRun]) -> list[Tensor]:
    return [run.rows for run in runs]


def _places(runs: Sequence[PrunedRun]) -> dict[str, Tensor]:
    """Return the rows that are left in each run, and those that go through the next layers if not all do."""
    taken = {f"taken.{i}": run.taken for i, run in enumerate(runs) if run.taken is not None}
    return {f"at.{i}": run.at for i, run in enumerate(runs)} | taken


def _restored(resume: Resume, runs: Sequence[PrunedRun], depth: int) -> int:
    """Restore the state of an earlier run, if it fits, and return the layer to go on from."""
    state = resume.read()
    if state is None or not 0 < state.layer < depth or len(state.rows) != len(runs):
        return 0
    if any(f"at.{i}" not in state.measured for i in range(len(runs))):
        return 0
    for i, (run, rows) in enumerate(zip(runs, state.rows, strict=True)):
        run.rows, run.at, run.taken = rows, state.measured[f"at.{i}"], state.measured.get(f"taken.{i}")
    return state.layer
