# SPDX-License-Identifier: Apache-2.0
"""Generated evaluations and overlays for the tests of the report."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from PIL import Image

from secateur.evaluation.results import (
    Answered,
    Evaluation,
    GateLine,
    McNemar,
    Overlay,
    Percentiles,
    ScheduleResult,
    Split,
    SplitPart,
)

METHODS = tuple(
    "btp fopru alvts fastv pdrop sparsevlm divprune dart visionzip cls v2drop vtw random stride downsample".split()
)
KINDS = {"visionzip": "vision", "downsample": "downsample", "alvts": "route"}


def evaluation(
    methods: Sequence[str] = METHODS,
    compressions: Sequence[float] = (0.78, 0.89, 0.94),
    grid: tuple[int, int] = (12, 12),
) -> Evaluation:
    """Return an evaluation of `full` at 95.3 % and of every method at every compression, all with different scores."""
    count, tokens = len(methods), grid[0] * grid[1]
    reference = f"downsample-{round(100 * compressions[-1])}" if "downsample" in methods else None
    schedules = [result("full", "full", float(tokens), tokens, 0.953)]
    for i, method in enumerate(methods):
        for compression in compressions:
            score = 0.953 * (1 - compression * (i + 1) / (2 * count))
            name = f"{method}-{round(100 * compression)}"
            schedules.append(result(name, method, tokens * (1 - compression), tokens, score, reference))
    return Evaluation(
        task="demo",
        metric="accuracy",
        full_marks=1.0,
        questions=1200,
        timed=50,
        seed=7,
        bundle="demo-compare",
        model="demo",
        target="cpu",
        dtype="fp32",
        backend="ort",
        machine={"cpu": "Some CPU", "cores": "2", "secateur": "9.9"},
        command="secateur eval build/demo-compare --html report.html",
        vision_tokens=tokens,
        grid=grid,
        segments=5,
        encoder_scores=("received.-2",),
        schedules=tuple(schedules),
    )


def result(
    name: str, method: str, average: float, tokens: int, score: float, reference: str | None = None
) -> ScheduleResult:
    full = method == "full"
    layers = () if full else tuple(range(16)) if method == "alvts" else (0,) if method in KINDS else (2, 4, 5)
    ratio = average / tokens
    stages = {"preprocess": 0.5, "vision": 4.0, "projector": 0.5, "embed": 0.1, "segment_0": 9 * ratio}
    stages |= {"segment_1": 11 * ratio} | {f"{name}.{i}": 0.2 for i in range(len(layers))}
    if method == "downsample":  # its gate is the encoder
        stages[f"{name}.0"] = stages.pop("vision") * ratio
    first = sum(stages.values())
    stages |= {"encode": 55.0, "prefill": 99.0}
    return ScheduleResult(
        name=name,
        method=method,
        positions="original",
        gates=tuple(GateLine(layer, KINDS.get(method, "prune"), max(1, int(average))) for layer in layers),
        compression=1 - ratio,
        average_tokens=average,
        prefill_flops_ratio=ratio,
        flops_ratio_with_gates=2 * ratio if method == "alvts" else None,
        cache_bytes=int(1_180_000 * ratio),
        score=score,
        score_interval=(score - 0.021, min(1.0, score + 0.019)),
        retention=score / 0.953,
        retention_interval=(score / 0.953 - 0.02, score / 0.953 + 0.01),
        mcnemar=None if full else McNemar(61, 17, 0.0004),
        split=None if reference is None else Split(reference, SplitPart(120, score - 0.2), SplitPart(452, None)),
        ttft_ms=Percentiles(first * 1.02, first * 1.2),
        stage_ms=stages,
        groups={"color": score, "count": score / 2},
        metrics={"yes_ratio": 0.51},
    )


def overlays(found: Evaluation, count: int = 4, pixels: int = 96, seed: int = 0) -> list[Overlay]:
    """Return `count` noisy images with random verdicts and random kept patches."""
    draw, rng = random.Random(seed), np.random.default_rng(seed)
    every = range(found.vision_tokens)
    made = []
    for number in range(count):
        answers = {}
        for schedule in found.schedules:
            kept = tuple(tuple(sorted(draw.sample(every, gate.keep))) for gate in schedule.gates)
            right = schedule.method == "full" or draw.random() < 0.5
            layers = tuple(gate.layer for gate in schedule.gates)
            answers[schedule.name] = Answered("green" if right else "red", float(right), layers, kept)
        image = Image.fromarray(rng.integers(0, 256, (pixels, pixels, 3), np.uint8))
        made.append(Overlay(image, f"what color is digit {number} ?", "green", answers))
    return made
