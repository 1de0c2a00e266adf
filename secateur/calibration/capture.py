# SPDX-License-Identifier: Apache-2.0
"""Run a model over calibration samples and measure what a method needs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from secateur.bundle.layout import Layout, View
from secateur.calibration.layer_walk import Start, layers, prompts, walk
from secateur.calibration.measures import DropDivergence, ViewMeasures
from secateur.calibration.resume import MeasuringState, Resume
from secateur.calibration.samples import Sample
from secateur.errors import BadModel
from secateur.families.base import Family
from secateur.selection.statistics import Statistics

ON_LAYERS = ("similarity", "attention", "cross_attention", "self_attention", "drop_divergence")
KNOWN = frozenset({*ON_LAYERS, "encoder_variance", "layers"})
DROPPED = 20
"""Samples of `drop_divergence` at most, as in VTW: its cost grows with the square of the depth."""


def capture(
    family: Family,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
    work: Path | None = None,
) -> list[Statistics]:
    """Measure the fields of `Statistics` named in `wanted`, on the unpruned model; an empty `wanted` runs nothing.

    Returns statistics of each size of view, in the order of `alike`, from one run of the model. Views of one size are
    each measured as if the prompt had no other, and count as samples of their own.

    seed      only recorded: it chose the samples; the measurement is deterministic
    progress  called with encoded images plus samples run through a layer, and their total
    work      folder for the state that a killed run resumes from

    Raises:
        ValueError: `wanted` names something that is not measured.
        BadModel: a measurement is NaN.
    """
    if unknown := sorted(wanted - KNOWN):
        raise ValueError(f"statistics {unknown} are not measured; known: {', '.join(sorted(KNOWN))}")
    chosen, on_layers = samples if wanted else (), bool(wanted.intersection(ON_LAYERS))
    sizes = [ViewMeasures(family, views, len(chosen), wanted) for views in sizes_of_views(family.layout)]
    dropped = min(len(chosen), DROPPED) if "drop_divergence" in wanted else 0
    counter = _Counter(progress, len(chosen), family.dimensions.layers * on_layers, dropped)

    start = _encode(family, chosen, wanted, sizes, counter)
    entered = list(start) if "layers" in wanted else []
    drop = DropDivergence(family, [each.rows for each in start[:dropped]])
    if on_layers:
        resume = Resume(work, (family.fingerprint, family.layout, sorted(wanted)), [each.rows for each in start])
        state = _restored(resume.read(), start, sizes, drop, family.dimensions.layers)
        counter.skip(state[0] if state else 0)
        for number, rows, passages in layers(family, start, state):
            resume.write(number, rows, _measured(sizes, drop))
            for sample in range(dropped):
                drop.enter(number, sample, rows[sample])
                counter.step(number + 1)
            for passage in passages:
                for size in sizes:
                    size.layer(passage)
                drop.leave(passage)
                counter.step()
        resume.done()

    shared = {"drop_divergence": drop.result()} if dropped else {}
    found = [size.arrays | shared for size in sizes]
    if damaged := sorted({name for arrays in found for name, array in arrays.items() if np.isnan(array).any()}):
        raise BadModel(
            f"what was measured of '{family.source}' is not a number ({', '.join(damaged)}); its weights are damaged, "
            "download the checkpoint again"
        )
    return [
        Statistics(
            replace(family.identity, vision_tokens=size.layout.vision_tokens),
            family.dimensions,
            size.layout,
            size.samples,
            seed,
            layers=partial(walk, family, entered, size.views) if "layers" in wanted else None,
            work=work,
            **arrays,
        )
        for size, arrays in zip(sizes, found, strict=True)
    ]


def sizes_of_views(layout: Layout) -> list[list[View]]:
    """Return the views grouped by size, in the order in which the sizes first occur in the prompt.

    A view of one token leaves nothing to choose, and is in none of the groups unless there is no other.
    """
    found: dict[tuple[int, int], list[View]] = {}
    for view in [view for view in layout.views if view.tokens > 1] or layout.views:
        found.setdefault(view.grid, []).append(view)
    return list(found.values())


class _Counter:
    """Count encoded images and samples run through a layer, and report them to `progress`."""

    def __init__(self, progress: Callable[[int, int], None], samples: int, depth: int, dropped: int) -> None:
        self.progress, self.samples, self.dropped, self.done = progress, samples, dropped, 0
        self.total = samples + depth * samples + dropped * depth * (depth + 1) // 2

    def step(self, count: int = 1) -> None:
        self.done += count
        self.progress(self.done, self.total)

    def skip(self, layers: int) -> None:
        """Count the first layers, which an earlier run finished."""
        for number in range(layers):
            self.step(self.samples + self.dropped * (number + 1))


def _encode(
    family: Family, samples: Sequence[Sample], wanted: frozenset[str], sizes: Sequence[ViewMeasures], counter: _Counter
) -> list[Start]:
    """Return the decoder input of each sample, and measure the encoder."""
    if not samples:
        return []
    reads = ("received.-2", "given.-2") if "encoder_variance" in wanted else ()
    start = []
    for number, each in enumerate(prompts(family, samples, reads)):
        for size in sizes:
            size.encoder(number, each.read)
        start.append(each)
        counter.step()
    return start


def _measured(sizes: Sequence[ViewMeasures], drop: DropDivergence) -> dict[str, Tensor]:
    """Return the measurements so far; those of `sizes` share the memory of their arrays."""
    named = [(f"found.{i}.{name}", array) for i, size in enumerate(sizes) for name, array in size.arrays.items()]
    return {name: torch.from_numpy(array) for name, array in named} | {
        f"without.{i}": text for i, text in enumerate(drop.text)
    }


def _restored(
    state: MeasuringState | None,
    start: Sequence[Start],
    sizes: Sequence[ViewMeasures],
    drop: DropDivergence,
    depth: int,
) -> tuple[int, list[Tensor]] | None:
    """Restore the measurements of an earlier run, if they fit: the layer to go on from, and its input rows."""
    if state is None or not 0 < state.layer < depth:
        return None
    measured = _measured(sizes, drop)
    shapes = {name: tuple(tensor.shape) for name, tensor in measured.items()}
    shapes |= {f"without.{i}": (state.layer, *text.shape[1:]) for i, text in enumerate(drop.text)}
    same = [rows.shape for rows in state.rows] == [each.rows.shape for each in start]
    if not same or {name: tuple(tensor.shape) for name, tensor in state.measured.items()} != shapes:
        return None
    drop.text = [state.measured[f"without.{i}"] for i in range(len(drop.text))]
    for name, tensor in measured.items():
        if name.startswith("found."):
            tensor.copy_(state.measured[name])
    return state.layer, state.rows
