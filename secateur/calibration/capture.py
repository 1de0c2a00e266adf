# SPDX-License-Identifier: Apache-2.0
"""Run a model over calibration samples and measure what a method asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.calibration import measures
from secateur.calibration.layers import Passage, entering, prompts, walk
from secateur.calibration.samples import Sample
from secateur.calibration.statistics import Statistics
from secateur.models.base import Family

ON_LAYERS = ("similarity", "attention", "cross_attention", "self_attention", "drop_divergence")
KNOWN = frozenset({*ON_LAYERS, "encoder_variance", "layers"})
DROPPED = 20
"""Samples of `drop_divergence` at most: each is run from every layer on."""


def capture(
    family: Family,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Measure the fields of `Statistics` named in `wanted`, on the unpruned model; an empty `wanted` runs nothing.

    `progress` counts encoded images and samples through a layer. Deterministic; `seed` is only noted (it chose the
    samples). `drop_divergence` takes the first 20 samples, as VTW does: its cost grows with the square of the depth.

    Raises:
        ValueError: `wanted` names something that is not measured.
    """
    if unknown := sorted(wanted - KNOWN):
        raise ValueError(f"statistics {unknown} are not measured; known: {', '.join(sorted(KNOWN))}")
    chosen = samples if wanted else ()
    measuring = _Measuring(family, len(chosen), wanted, progress)
    start = measuring.encode(chosen)
    if measuring.on_layers:
        measuring.walk(start)
    return Statistics(
        family.identity,
        family.dimensions,
        family.layout,
        len(chosen),
        seed,
        layers=partial(walk, family, start) if "layers" in wanted else None,
        **measuring.found,
    )


class _Measuring:
    """The arrays of one run, filled sample by sample and layer by layer."""

    def __init__(
        self, family: Family, samples: int, wanted: frozenset[str], progress: Callable[[int, int], None]
    ) -> None:
        self.family, self.layout, self.wanted = family, family.layout, wanted
        self.depth, tokens = family.dimensions.layers, self.layout.vision_tokens
        self.on_layers = bool(wanted.intersection(ON_LAYERS))
        self.dropped = min(samples, DROPPED) if "drop_divergence" in wanted else 0
        shapes = {
            "similarity": (self.depth, samples, tokens),
            "attention": (self.depth, samples),
            "cross_attention": (self.depth, samples, tokens),
            "self_attention": (self.depth, samples, tokens),
            "drop_divergence": (self.depth, self.dropped),
            "encoder_variance": (samples, 2),
        }
        self.found: dict[str, Any] = {n: np.zeros(s, np.float32) for n, s in shapes.items() if n in wanted}
        self.progress, self.done = progress, 0
        runs = self.depth * samples if self.on_layers else 0
        self.total = samples + runs + self.dropped * self.depth * (self.depth + 1) // 2
        # Rows [1, D] behind the last layer: of the whole model, and without the image from each layer on.
        self.full: list[Tensor] = []
        self.without: list[list[Tensor]] = [[] for _ in range(self.dropped)]

    def encode(self, samples: Sequence[Sample]) -> list[Tensor]:
        """The rows that enter layer 0 of each sample."""
        reads = ("received.-2", "given.-2") if "encoder_variance" in self.wanted else ()
        start = []
        for i, (rows, read) in enumerate(prompts(self.family, samples, reads)):
            start.append(rows)
            if read:
                self.found["encoder_variance"][i] = [float(score.float().var(correction=0)) for score in read]
            self._step()
        return start

    def walk(self, start: Sequence[Tensor]) -> None:
        """Fill what is measured on layers."""
        decoder = self.family.decoder
        for number, rows in enumerate(entering(decoder, start, self._passed)):
            for i in range(self.dropped):
                self.without[i].append(measures.without_image(decoder, self.layout, rows[i], number))
                self._step(self.depth - number)
        for i in range(self.dropped):
            divergence = measures.divergence(decoder, self.full[i], torch.cat(self.without[i]))
            self.found["drop_divergence"][:, i] = divergence

    def _passed(self, passage: Passage) -> None:
        layout, at, rows = self.layout, (passage.number, passage.sample), passage.before.shape[1]
        end = layout.image_start + layout.vision_tokens
        if "similarity" in self.wanted:
            self.found["similarity"][at] = measures.similarity(passage, layout)
        if "attention" in self.wanted:
            self.found["attention"][at] = measures.attention(passage, layout)
        if "cross_attention" in self.wanted:
            self.found["cross_attention"][at] = measures.received(passage, layout, end, rows)
        if "self_attention" in self.wanted:
            self.found["self_attention"][at] = measures.received(passage, layout, layout.image_start, end)
        if passage.number == self.depth - 1 and passage.sample < self.dropped:
            self.full.append(passage.after[:, -1])
        self._step()

    def _step(self, count: int = 1) -> None:
        self.done += count
        self.progress(self.done, self.total)
