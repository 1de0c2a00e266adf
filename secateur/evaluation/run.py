# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a bundle: the same questions to every schedule, then scores, comparisons and times."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.manifest import Manifest
from secateur.bundle.schedule import FULL, Schedule
from secateur.errors import InputError, UnknownName
from secateur.evaluation import batching
from secateur.evaluation.batching import BATCH, Timed
from secateur.evaluation.compare import mcnemar, nearest_downsample, retention, split
from secateur.evaluation.results import Evaluation, GateLine, Percentiles, ScheduleResult
from secateur.evaluation.tasks.base import Task
from secateur.machine import machine
from secateur.progress import Progress
from secateur.runtime import Pipeline

TIMED = 50
WHOLE = ("first_token", "decode", "decode_per_token", "total")  # times of the whole answer, not of a stage
WITH_GATES = "pruned_and_selector_of_dense_flops"
"""Entry of a schedule's `calibration`: FLOPs of the pruned decoder and its gates over those of the dense layers."""


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation.

    seed            seed of the bootstrap
    timed           questions that are timed one at a time, at most as many as there are
    batch           questions that are answered together for the scores, at most as many as the backend takes
    max_new_tokens  longest answer; None takes the task's
    """

    seed: int = 0
    timed: int = TIMED
    batch: int = BATCH
    max_new_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("timed", "batch", "max_new_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def select_schedules(available: Iterable[str], wanted: str) -> list[str]:
    """Return the names of the schedules that "all" or "a,b" selects from `available`, with full always first.

    Raises:
        UnknownName: the bundle has no such schedule.
        InputError: `wanted` names none.
    """
    names = list(available)
    asked = names if wanted == "all" else [name.strip() for name in wanted.split(",") if name.strip()]
    if not asked:
        raise InputError(f"--schedules is '{wanted}', which has no name; give names as a,b, or all")
    for name in asked:
        if name not in names:
            raise UnknownName("schedule", name, names, "`secateur export --schedule FILE` adds one.")
    return list(dict.fromkeys([FULL, *asked]))


def evaluate(
    vlm: Pipeline,
    task: Task,
    names: Sequence[str],
    settings: EvaluationSettings,
    progress: Progress,
    *,
    source: str,
    backend: str,
    command: str,
) -> Evaluation:
    """Ask all questions and compare the schedules.

    names    schedules, full first
    source   name of the task's data, backend and command: for the record

    Raises:
        BadPrompt, BadImage: a question cannot be asked; the message has its id.
    """
    manifest = vlm.bundle.manifest
    longest = settings.max_new_tokens or task.max_new_tokens
    batch = min(settings.batch, vlm.most_batch or settings.batch)
    batching.check_prompts(vlm, task, longest)
    scores = batching.scores(vlm, task, names, longest, batch, progress)
    times = batching.timed(vlm, task.questions[: settings.timed], names, progress)
    schedules = {name: vlm.bundle.schedule(name) for name in names}
    return Evaluation(
        task=source,
        metric=task.metric,
        full_marks=task.full_marks,
        questions=len(task.questions),
        timed=min(settings.timed, len(task.questions)),
        seed=settings.seed,
        bundle=vlm.bundle.root.name,
        model=manifest.source,
        target=manifest.target,
        dtype=manifest.dtype,
        backend=backend,
        machine=machine(vlm.describe()),
        command=command,
        vision_tokens=manifest.layout.vision_tokens,
        grid=manifest.layout.grid,
        segments=len(manifest.segments),
        encoder_scores=encoder_scores(manifest),
        schedules=tuple(_result(name, task, schedules, scores, times[name], settings.seed) for name in names),
        image_sizes=vlm.image_sizes,
    )


def _result(
    name: str,
    task: Task,
    schedules: dict[str, Schedule],
    scores: dict[str, NDArray[np.float64]],
    answers: list[Timed],
    seed: int,
) -> ScheduleResult:
    schedule, ours, full = schedules[name], scores[name], scores[FULL]
    groups = np.array([q.group for q in task.questions])
    kept = retention(
        lambda weights: task.metrics(ours, weights)[task.metric],
        lambda weights: task.metrics(full, weights)[task.metric],
        [q.picture for q in task.questions],
        seed,
    )
    reference = None if name == FULL else nearest_downsample(schedule, schedules)
    first = [a.milliseconds["first_token"] for a in answers]
    by_time = sorted(answers, key=lambda answer: answer.milliseconds["first_token"])
    typical = by_time[len(answers) // 4 : -(len(answers) // 4) or None]  # so that the stages add up to the median
    stages = [stage for stage in answers[0].milliseconds if stage not in WHOLE]
    whole = task.metrics(ours, np.ones(len(ours)))
    return ScheduleResult(
        name=name,
        method=schedule.method,
        positions=schedule.positions,
        gates=tuple(GateLine(gate.layer, gate.kind, gate.keep) for gate in schedule.gates),
        compression=schedule.budget.compression,
        average_tokens=schedule.budget.average_tokens,
        prefill_flops_ratio=schedule.budget.prefill_flops_ratio,
        flops_ratio_with_gates=flops_ratio_with_gates(schedule),
        cache_bytes=int(np.median([a.cache_bytes for a in answers])),
        score=kept.score,
        score_interval=kept.score_interval,
        retention=kept.retention,
        retention_interval=kept.retention_interval,
        mcnemar=mcnemar(ours, full) if task.binary and name != FULL else None,
        split=None if reference is None else split(ours, full, scores[reference], reference),
        ttft_ms=Percentiles(float(np.percentile(first, 50)), float(np.percentile(first, 95))),
        stage_ms={stage: float(np.median([a.milliseconds[stage] for a in typical])) for stage in stages},
        groups={
            group: float(task.metrics(ours, (groups == group).astype(float))[task.metric])
            for group in sorted(set(groups.tolist()) - {""})
        },
        metrics={key: float(value) for key, value in whole.items() if key != task.metric},
    )


def encoder_scores(manifest: Manifest) -> tuple[str, ...]:
    """Return the names of the outputs of the vision graph that only gates need."""
    needed = {"features", *(f"deepstack.{i}" for i in range(manifest.dimensions.planes))}
    return tuple(output.name for output in manifest.vision.outputs if output.name not in needed)


def flops_ratio_with_gates(schedule: Schedule) -> float | None:
    """Return the FLOPs ratio with gates that the method reports, None if it does not."""
    value: object = schedule.calibration.get(WITH_GATES)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
