# SPDX-License-Identifier: Apache-2.0
"""Timing of a backend in this process. Schedules answer the same question in turn, so disturbances affect all alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from secateur.bundle.graph_plan import prefill, runs
from secateur.bundle.layout import Layout
from secateur.bundle.sampling import Sampling
from secateur.errors import InputError
from secateur.profiling.chains import chain, compared, kinds, with_shares
from secateur.profiling.results import STAGES, ChainTimes, GraphTimes, spread
from secateur.progress import Progress
from secateur.runtime import Pipeline
from secateur.runtime.image import ImageLike

Timings = Sequence[dict[str, float]]
SIDE = 336
PROMPT = "what is in the picture ?"


@dataclass(frozen=True)
class ClockSettings:
    """Number of timed rounds, of warm-up rounds, and of tokens in each answer (one: only the first token)."""

    rounds: int = 30
    warmup: int = 3
    new_tokens: int = 8

    def __post_init__(self) -> None:
        for name, least in (("rounds", 1), ("warmup", 0), ("new_tokens", 1)):
            if (value := getattr(self, name)) < least:
                raise InputError(f"--{name.replace('_', '-')} is {value}; it must be at least {least}")


UNTIMED = 2
"""Untimed questions before each timed one if the backend records decode steps: one warms up, one records."""


def noise(layout: Layout) -> tuple[ImageLike, ...]:
    """Return random images for a prompt. Times do not depend on the content of an image."""
    height, width = (size or SIDE for size in layout.image_size)
    return tuple(np.random.default_rng(0).integers(0, 256, (layout.images, height, width, 3), np.uint8))


def clock(
    vlm: Pipeline,
    image: ImageLike | None,
    prompt: str,
    names: Sequence[str],
    settings: ClockSettings,
    progress: Progress,
) -> tuple[tuple[ChainTimes, ...], tuple[GraphTimes, ...]]:
    """Time the schedules `names` at every image size, and return their chains and graphs.

    image   used for every image of a prompt; None for noise

    Raises:
        BadImage, BadPrompt: as Pipeline.ask.
    """
    every = runs(vlm.bundle.manifest, names)
    found: dict[str, list[dict[str, float]]] = {label: [] for label in every}
    asked = {
        label: noise(run.manifest.layout) if image is None else (image,) * run.manifest.layout.images
        for label, run in every.items()
    }
    turns = settings.warmup + settings.rounds
    for turn in range(turns):
        first = turn % len(every)  # no schedule always follows the same one
        for label in [*every, *every][first : first + len(every)]:
            size = every[label].manifest.layout.size
            for _ in range(1 + UNTIMED if vlm.records_steps else 1):
                answer = vlm.ask(
                    asked[label],
                    prompt,
                    every[label].schedule,
                    image_size=size,
                    sampling=Sampling(max_new_tokens=settings.new_tokens),
                )
            if turn >= settings.warmup:
                found[label].append(answer.timings)
        progress("rounds", "", turn + 1, turns)
    chains = compared([_chain(vlm, name, timings) for name, timings in found.items()])
    graphs = [graph for name, timings in found.items() for graph in _graphs(vlm, name, timings)]
    return chains, with_shares(graphs, chains)


def _chain(vlm: Pipeline, name: str, timings: Timings) -> ChainTimes:
    part = {graph: STAGES[kind] for graph, kind in kinds(vlm.bundle.manifest).items()}
    stages = {"preprocess": spread([one["preprocess"] for one in timings]).p50}
    for stage in dict.fromkeys(STAGES.values()):
        sums = [sum(ms for key, ms in one.items() if part.get(key) == stage) for one in timings]
        stages[stage] = spread(sums).p50
    steps = [one["decode_per_token"] for one in timings if one["decode_per_token"]]
    encode, rest, first = ([one[key] for one in timings] for key in ("encode", "prefill", "first_token"))
    decode = spread(steps) if steps else None
    return chain(vlm.bundle, name, spread(encode), spread(rest), spread(first), decode, stages)


def _graphs(vlm: Pipeline, name: str, timings: Timings) -> list[GraphTimes]:
    kind = kinds(vlm.bundle.manifest)
    steps = {step.graph: step for step in prefill(*runs(vlm.bundle.manifest)[name], 1)}
    return [
        GraphTimes(
            name=step.graph,
            graph=step.graph,
            kind=kind[step.graph],
            part=step.kind,
            runs=len(timings),
            compute=spread([one[step.graph] for one in timings]),
            enqueue=None,
            bound=False,
            shares={name: 0.0},
        )
        for step in steps.values()
    ]
