# SPDX-License-Identifier: Apache-2.0
"""Run a model over calibration samples and measure what a method asks for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from secateur.bundle.layout import Layout, View
from secateur.calibration import measures
from secateur.calibration.layer_walk import Passage, Start, entering, prompts, walk
from secateur.calibration.resume import MeasuringState, Resume
from secateur.calibration.samples import Sample
from secateur.checkpoints.streaming import held
from secateur.errors import BadModel
from secateur.families.base import Family
from secateur.selection.statistics import Statistics

ON_LAYERS = ("similarity", "attention", "cross_attention", "self_attention", "drop_divergence")
KNOWN = frozenset({*ON_LAYERS, "encoder_variance", "layers"})
DROPPED = 20
"""Samples of `drop_divergence` at most: the text rows of each are run from every layer on, all side by side, so that
each layer is read once; after layer l they are held l + 1 times."""


def capture(
    family: Family,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    work: Path | None = None,
) -> list[Statistics]:
    """Measure the fields of `Statistics` named in `wanted`, on the unpruned model; an empty `wanted` runs nothing.

    Returns statistics of each size of view, in the order of `alike`; the model is walked through once for all. Views of
    one size are each measured as if the prompt had no other, and count as samples of their own. `work` is a folder in
    which a killed run leaves what the next one goes on from.

    `progress` counts encoded images and samples through a layer. Deterministic; `seed` is only noted (it chose the
    samples). `drop_divergence` takes the first 20 samples, as VTW does: its cost grows with the square of the depth.

    Raises:
        ValueError: `wanted` names something that is not measured.
        BadModel: what was measured is not a number.
    """
    if unknown := sorted(wanted - KNOWN):
        raise ValueError(f"statistics {unknown} are not measured; known: {', '.join(sorted(KNOWN))}")
    chosen = samples if wanted else ()
    measuring = _Measuring(family, len(chosen), wanted, progress)
    start = measuring.encode(chosen) if chosen else []
    entered = list(start) if "layers" in wanted else []
    if measuring.on_layers:
        measuring.walk(start, work)
    found = [own.found | measuring.found for own in measuring.sizes]
    if damaged := sorted({name for each in found for name, array in each.items() if np.isnan(array).any()}):
        raise BadModel(
            f"what was measured of '{family.source}' is not a number ({', '.join(damaged)}); its weights are damaged, "
            "take the checkpoint anew"
        )
    return [
        Statistics(
            replace(family.identity, vision_tokens=own.layout.vision_tokens),
            family.dimensions,
            own.layout,
            own.samples,
            seed,
            layers=partial(walk, family, entered, own.views) if "layers" in wanted else None,
            work=work,
            **arrays,
        )
        for own, arrays in zip(measuring.sizes, found, strict=True)
    ]


def alike(layout: Layout) -> list[list[View]]:
    """The views by size, in the order in which they first stand in the prompt.

    A view of one token leaves nothing to choose, and is in none of the lists unless there is no other.
    """
    found: dict[tuple[int, int], list[View]] = {}
    for view in [view for view in layout.views if view.tokens > 1] or layout.views:
        found.setdefault(view.grid, []).append(view)
    return list(found.values())


class _Views:
    """What is measured of views of one size, sample by sample and layer by layer."""

    def __init__(self, family: Family, views: Sequence[View], samples: int, wanted: frozenset[str]) -> None:
        self.whole, self.views, self.wanted = family.layout, views, wanted
        self.layout = self.whole if len(self.whole.views) == 1 else self.whole.alone(views[0])
        self.bidirectional, self.samples = family.dimensions.bidirectional, samples * len(views)
        depth, tokens = family.dimensions.layers, self.layout.vision_tokens
        shapes = {
            "similarity": (depth, self.samples, tokens),
            "attention": (depth, self.samples),
            "cross_attention": (depth, self.samples, tokens),
            "self_attention": (depth, self.samples, tokens),
            "encoder_variance": (self.samples, 2),
        }
        self.found: dict[str, Any] = {n: np.zeros(s, np.float32) for n, s in shapes.items() if n in wanted}

    def encoded(self, sample: int, read: Sequence[Tensor]) -> None:
        """Measure the encoder's scores `read` of a sample, [1, N] of all images."""
        for i, view in enumerate(self.views):
            tokens = torch.from_numpy(self.whole.members[self.whole.views.index(view)])
            variance = [float(score[:, tokens].float().var(correction=0)) for score in read]
            self.found["encoder_variance"][sample * len(self.views) + i] = variance

    def passed(self, passage: Passage) -> None:
        """Measure a sample's way through a layer."""
        for i, view in enumerate(self.views):
            self._measure(passage.only(self.whole, view), passage.sample * len(self.views) + i)

    def _measure(self, passage: Passage, number: int) -> None:
        """One view; `number` is its own among those of all samples."""
        layout, at, rows = self.layout, (passage.number, number), passage.before.shape[1]
        start, end, both = layout.image_start, layout.image_start + layout.vision_tokens, self.bidirectional
        if "similarity" in self.wanted:
            self.found["similarity"][at] = measures.similarity(passage, layout)
        if "attention" in self.wanted:
            self.found["attention"][at] = measures.attention(passage, layout)
        if "cross_attention" in self.wanted:
            self.found["cross_attention"][at] = measures.received(passage, layout, end, rows, both)
        if "self_attention" in self.wanted:
            self.found["self_attention"][at] = measures.received(passage, layout, start, end, both)


class _Measuring:
    """One run of all samples through the model."""

    def __init__(
        self, family: Family, samples: int, wanted: frozenset[str], progress: Callable[[int, int], None]
    ) -> None:
        self.family, self.wanted, self.depth = family, wanted, family.dimensions.layers
        self.sizes = [_Views(family, views, samples, wanted) for views in alike(family.layout)]
        self.on_layers = bool(wanted.intersection(ON_LAYERS))
        self.dropped = min(samples, DROPPED) if "drop_divergence" in wanted else 0
        # What does not depend on the size of views.
        self.found: dict[str, Any] = {}
        if "drop_divergence" in wanted:
            self.found["drop_divergence"] = np.zeros((self.depth, self.dropped), np.float32)
        self.progress, self.done = progress, 0
        runs = self.depth * samples if self.on_layers else 0
        self.total = samples + runs + self.dropped * self.depth * (self.depth + 1) // 2
        # Of each dropped sample the last row [1, D] after the last layer, and see `measures.without_image`.
        self.full: list[Tensor] = []
        self.without: list[Tensor | None] = [None] * self.dropped

    def encode(self, samples: Sequence[Sample]) -> list[Start]:
        """What enters layer 0 of each sample."""
        reads = ("received.-2", "given.-2") if "encoder_variance" in self.wanted else ()
        start = []
        for number, each in enumerate(prompts(self.family, samples, reads)):
            start.append(each)
            for own in self.sizes if reads else ():
                own.encoded(number, each.read)
            self._step()
        return start

    def walk(self, start: list[Start], work: Path | None) -> None:
        """Fill what is measured on layers and empty `start`; `work` is a folder for what a killed run leaves."""
        decoder, layout = self.family.decoder, self.family.layout
        key = (self.family.fingerprint, layout, sorted(self.wanted))
        resume = Resume(work, key, [each.rows for each in start])
        for number, rows in entering(self.family, start, self._passed, self._go_on(resume.read(), start)):
            resume.write(number, rows, self._measured())
            for i, before in enumerate(self.without):
                self.without[i] = measures.without_image(decoder, layout, before, rows[i], number)
                self._step(number + 1)
        resume.done()
        with held(*((decoder.norm, decoder.head) if self.dropped else ())):
            for i, last in enumerate(self.without):
                assert last is not None
                self.found["drop_divergence"][:, i] = measures.divergence(decoder, self.full[i], last[:, -1])

    def _measured(self) -> dict[str, Tensor]:
        """All that was found up to now; "found" shares the memory of the arrays."""
        sizes = enumerate(self.sizes)
        found = {f"found.{i}.{name}": torch.from_numpy(array) for i, own in sizes for name, array in own.found.items()}
        return found | {f"without.{i}": last for i, last in enumerate(self.without) if last is not None}

    def _go_on(self, state: MeasuringState | None, start: Sequence[Start]) -> tuple[int, list[Tensor]] | None:
        """Take over what an earlier run found, if it is of the same shapes: the layer to go on from, and its rows."""
        if state is None or not 0 < state.layer < self.depth:
            return None
        text = [each.rows.shape[1] - self.family.layout.vision_tokens for each in start[: self.dropped]]
        found = self._measured()
        shapes: dict[str, tuple[int, ...]] = {name: tuple(tensor.shape) for name, tensor in found.items()}
        shapes |= {f"without.{i}": (state.layer, count, start[i].rows.shape[2]) for i, count in enumerate(text)}
        same = [rows.shape for rows in state.rows] == [each.rows.shape for each in start]
        if not same or {name: tuple(tensor.shape) for name, tensor in state.measured.items()} != shapes:
            return None
        for name, tensor in found.items():
            tensor.copy_(state.measured[name])
        self.without = [state.measured[f"without.{i}"] for i in range(self.dropped)]
        for number in range(state.layer):
            self._step(len(start) + self.dropped * (number + 1))
        return state.layer, state.rows

    def _passed(self, passage: Passage) -> None:
        for own in self.sizes:
            own.passed(passage)
        if passage.number == self.depth - 1 and passage.sample < self.dropped:
            self.full.append(passage.after[:, -1])
        self._step()

    def _step(self, count: int = 1) -> None:
        self.done += count
        self.progress(self.done, self.total)
