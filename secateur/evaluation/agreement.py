# SPDX-License-Identifier: Apache-2.0
"""Two backends on the same inputs, graph by graph, compared by Polygraphy.

The inputs are real: a walk of the reference backend through the whole chain, prefill and one decode step, is recorded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.artifacts import GraphSpec
from secateur.errors import BackendMissing
from secateur.export.examples import example
from secateur.progress import Progress, silent
from secateur.runtime.backends import base
from secateur.runtime.bundle import Bundle
from secateur.runtime.chain import Chain
from secateur.runtime.receipt import Stopwatch
from secateur.runtime.rows import Rows

SHARE = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}
"""Allowed difference as a share of the largest magnitude in an output, as in the check after an export."""

Feed = dict[str, base.Array]


@dataclass(frozen=True)
class Bounds:
    """A value agrees within one of them: `atol` absolute, `rtol` relative to the reference's value.

    None: `atol` is SHARE of the largest magnitude of the output, `rtol` is 0. Integers must always be equal.
    """

    atol: float | None = None
    rtol: float | None = None


@dataclass(frozen=True)
class Output:
    """The worst of an output's runs.

    absolute  largest difference
    relative  the same over the largest magnitude of the reference
    """

    name: str
    dtype: str
    absolute: float
    relative: float
    passed: bool


@dataclass(frozen=True)
class Agreement:
    """One graph, run so many times on both backends."""

    graph: str
    runs: int
    outputs: tuple[Output, ...]

    @property
    def passed(self) -> bool:
        return all(output.passed for output in self.outputs)


class Recording(base.Backend):
    """Runs everything on `inner`, and keeps a copy of the inputs of each run by graph."""

    def __init__(self, inner: base.Backend, masked_past: int) -> None:
        self.masked_past = masked_past
        self.feeds: dict[str, list[Feed]] = {}
        self._inner = inner

    def load(self, graph: GraphSpec) -> None:
        self._inner.load(graph)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> base.Buffer:
        return self._inner.allocate(shape, dtype)

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        feed = {name: buffer.numpy().copy() for name, buffer in inputs.items()}
        self.feeds.setdefault(graph, []).append(feed)
        self._inner.run(graph, inputs, outputs)

    def close(self) -> None:
        self._inner.close()


def check_polygraphy() -> None:
    """For those who want to know before they open backends, which may take minutes.

    Raises:
        BackendMissing: Polygraphy is not installed.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise BackendMissing("comparing backends needs Polygraphy; pip install 'polygraphy>=0.53'")


def agree(
    bundle: Bundle,
    reference: base.Backend,
    candidate: base.Backend,
    schedules: Sequence[str],
    bounds: Bounds = Bounds(),
    progress: Progress = silent,
) -> tuple[Agreement, ...]:
    """Every graph that these schedules run, in the manifest's order.

    Raises:
        BackendMissing: Polygraphy is not installed.
    """
    check_polygraphy()
    from secateur.evaluation.comparator import Runner, compare

    recording = Recording(reference, max(reference.masked_past, candidate.masked_past))
    chain = Chain(bundle.manifest, recording, schedules)
    graphs = {graph.name: graph for graph in bundle.manifest.graphs}
    runs: dict[str, list[list[Output]]] = {}
    for done, schedule in enumerate(schedules):
        progress("check", schedule, done, len(schedules))
        recording.feeds.clear()
        _walk(chain, bundle, schedule)
        for name, feeds in recording.feeds.items():
            candidate.load(graphs[name])
            pair = Runner("found", candidate, graphs[name]), Runner("expected", reference, graphs[name])
            share = SHARE[bundle.manifest.dtype]
            runs.setdefault(name, []).extend(compare(pair, feed, bounds, share) for feed in feeds)
    progress("check", "", len(schedules), len(schedules))
    return tuple(Agreement(name, len(runs[name]), _worst(runs[name])) for name in graphs if name in runs)


def _walk(chain: Chain, bundle: Bundle, schedule: str) -> None:
    """Prefill and one decode step on a made picture and question."""
    watch = Stopwatch()
    pixels, rows = example(bundle.manifest, bundle.prompt)
    cache = chain.cache(1, rows.input_ids.shape[1] + 1, schedule)
    walk = chain.prefill(rows, chain.see(pixels, schedule, watch), schedule, cache, watch)
    chain.step(Rows.pad([[int(walk.logits.argmax())]], bundle.prompt.pad, cache.position), cache)


def _worst(runs: list[list[Output]]) -> tuple[Output, ...]:
    """The outputs of one graph over its runs; one that is empty in a run does not count there."""
    worst: dict[str, Output] = {}
    for output in (output for run in runs for output in run):
        before = worst.get(output.name, output)
        worst[output.name] = Output(
            output.name,
            output.dtype,
            max(before.absolute, output.absolute),
            max(before.relative, output.relative),
            before.passed and output.passed,
        )
    return tuple(worst.values())
