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

from secateur.artifacts import Layout, View
from secateur.calibration import measures
from secateur.calibration.layers import Passage, Start, entering, prompts, walk
from secateur.calibration.resume import Resume, State
from secateur.calibration.samples import Sample
from secateur.calibration.statistics import Statistics
from secateur.errors import BadModel
from secateur.models._streaming import held
from secateur.models.base import Family

ON_LAYERS = ("similarity", "attention", "cross_attention", "self_attention", "drop_divergence")
KNOWN = frozenset({*ON_LAYERS, "encoder_variance", "layers"})
DROPPED = 20
"""Samples of `drop_divergence` at most: the text rows of each are run from every layer on, all side by side, so that
each layer is read once; behind layer l they are held l + 1 times."""


def capture(
    family: Family,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    views: Sequence[View] | None = None,
    work: Path | None = None,
) -> Statistics:
    """Measure the fields of `Statistics` named in `wanted`, on the unpruned model; an empty `wanted` runs nothing.

    `views` of one size are measured, each as if the prompt had no other, and count as samples of their own; None takes
    those of the size of the first. `work` is a folder in which a killed run leaves what the next one goes on from.

    `progress` counts encoded images and samples through a layer. Deterministic; `seed` is only noted (it chose the
    samples). `drop_divergence` takes the first 20 samples, as VTW does: its cost grows with the square of the depth.

    Raises:
        ValueError: `wanted` names something that is not measured.
        BadModel: what was measured is not a number.
    """
    if unknown := sorted(wanted - KNOWN):
        raise ValueError(f"statistics {unknown} are not measured; known: {', '.join(sorted(KNOWN))}")
    chosen = samples if wanted else ()
    if views is None:
        views = [view for view in family.layout.views if view.grid == family.layout.grid]
    layout = family.layout if len(family.layout.views) == 1 else family.layout.alone(views[0])
    measuring = _Measuring(family, len(chosen), wanted, views, layout, progress)
    start = measuring.encode(chosen) if chosen else []
    layers = partial(walk, family, list(start), views) if "layers" in wanted else None
    if measuring.on_layers:
        measuring.walk(start, work)
    if damaged := sorted(name for name, array in measuring.found.items() if np.isnan(array).any()):
        raise BadModel(
            f"what was measured of '{family.source}' is not a number ({', '.join(damaged)}); its weights are damaged, "
            "take the checkpoint anew"
        )
    return Statistics(
        replace(family.identity, vision_tokens=layout.vision_tokens),
        family.dimensions,
        layout,
        len(chosen) * len(views),
        seed,
        layers=layers,
        work=work,
        **measuring.found,
    )


class _Measuring:
    """The arrays of one run, filled sample by sample and layer by layer."""

    def __init__(
        self,
        family: Family,
        samples: int,
        wanted: frozenset[str],
        views: Sequence[View],
        layout: Layout,
        progress: Callable[[int, int], None],
    ) -> None:
        self.family, self.views, self.layout, self.wanted = family, views, layout, wanted
        self.depth, tokens = family.dimensions.layers, self.layout.vision_tokens
        self.bidirectional = family.dimensions.bidirectional
        self.on_layers = bool(wanted.intersection(ON_LAYERS))
        self.dropped = min(samples, DROPPED) if "drop_divergence" in wanted else 0
        each = samples * len(views)
        shapes = {
            "similarity": (self.depth, each, tokens),
            "attention": (self.depth, each),
            "cross_attention": (self.depth, each, tokens),
            "self_attention": (self.depth, each, tokens),
            "drop_divergence": (self.depth, self.dropped),
            "encoder_variance": (each, 2),
        }
        self.found: dict[str, Any] = {n: np.zeros(s, np.float32) for n, s in shapes.items() if n in wanted}
        self.progress, self.done = progress, 0
        runs = self.depth * samples if self.on_layers else 0
        self.total = samples + runs + self.dropped * self.depth * (self.depth + 1) // 2
        # Of each dropped sample the last row [1, D] behind the last layer, and see `measures.without_image`.
        self.full: list[Tensor] = []
        self.without: list[Tensor | None] = [None] * self.dropped

    def encode(self, samples: Sequence[Sample]) -> list[Start]:
        """What enters layer 0 of each sample."""
        reads = ("received.-2", "given.-2") if "encoder_variance" in self.wanted else ()
        start, number = [], 0
        for each in prompts(self.family, samples, reads):
            start.append(each)
            for tokens in (self._tokens(view) for view in self.views if reads):
                variance = [float(score[:, tokens].float().var(correction=0)) for score in each.read]
                self.found["encoder_variance"][number] = variance
                number += 1
            self._step()
        return start

    def _tokens(self, view: View) -> Tensor:
        """Numbers of a view's tokens among those of all images."""
        layout = self.family.layout
        return torch.from_numpy(layout.members[layout.views.index(view)])

    def walk(self, start: list[Start], work: Path | None) -> None:
        """Fill what is measured on layers and empty `start`; `work` is a folder for what a killed run leaves."""
        decoder, layout = self.family.decoder, self.family.layout
        views = [(view.start, view.grid) for view in self.views]
        key = (self.family.fingerprint, layout, views, sorted(self.wanted))
        resume = Resume(work, key, [each.rows for each in start])
        for number, rows in entering(self.family, start, self._passed, self._go_on(resume.read(), start)):
            resume.write(number, rows, self._measured())
            for i, before in enumerate(self.without):
                self.without[i] = measures.without_image(decoder, layout, before, rows[i], number)
                self._step(number + 1)
        resume.done()
        with held(*((decoder.norm, decoder.head) if self.dropped else ())):
            for i, behind in enumerate(self.without):
                assert behind is not None
                self.found["drop_divergence"][:, i] = measures.divergence(decoder, self.full[i], behind[:, -1])

    def _measured(self) -> dict[str, Tensor]:
        """All that was found up to now."""
        without = {f"without.{i}": rows for i, rows in enumerate(self.without) if rows is not None}
        return {f"found.{name}": torch.from_numpy(array) for name, array in self.found.items()} | without

    def _go_on(self, state: State | None, start: Sequence[Start]) -> tuple[int, list[Tensor]] | None:
        """Take over what an earlier run found, if it is of the same shapes: the layer to go on from, and its rows."""
        if state is None or not 0 < state.layer < self.depth:
            return None
        text = [each.rows.shape[1] - self.family.layout.vision_tokens for each in start[: self.dropped]]
        shapes: dict[str, tuple[int, ...]] = {f"found.{name}": array.shape for name, array in self.found.items()}
        shapes |= {f"without.{i}": (state.layer, count, start[i].rows.shape[2]) for i, count in enumerate(text)}
        same = [rows.shape for rows in state.rows] == [each.rows.shape for each in start]
        if not same or {name: tuple(tensor.shape) for name, tensor in state.measured.items()} != shapes:
            return None
        for name, array in self.found.items():
            array[:] = state.measured[f"found.{name}"].numpy()
        self.without = [state.measured[f"without.{i}"] for i in range(self.dropped)]
        for number in range(state.layer):
            self._step(len(start) + self.dropped * (number + 1))
        return state.layer, state.rows

    def _passed(self, passage: Passage) -> None:
        for i, view in enumerate(self.views):
            self._measure(passage.only(self.family.layout, view), passage.sample * len(self.views) + i)
        if passage.number == self.depth - 1 and passage.sample < self.dropped:
            self.full.append(passage.after[:, -1])
        self._step()

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

    def _step(self, count: int = 1) -> None:
        self.done += count
        self.progress(self.done, self.total)
