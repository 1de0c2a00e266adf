# SPDX-License-Identifier: Apache-2.0
"""Two backends on the same inputs, graph by graph, compared by Polygraphy.

The inputs are real: for every image size and schedule, a walk of the reference backend through the whole chain, prefill
and one decode step, is recorded.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from secateur.bundle.graph_plan import SizedSchedule
from secateur.bundle.graph_plan import runs as every_run
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.prompt import Prompt
from secateur.bundle.reader import Bundle
from secateur.errors import BackendMissing
from secateur.export.examples import example
from secateur.export.tolerance import tolerance
from secateur.progress import Progress, silent
from secateur.runtime.backends import base
from secateur.runtime.chain import Chain
from secateur.runtime.receipt import Stopwatch
from secateur.runtime.token_batch import TokenBatch

Feed = dict[str, base.Array]


@dataclass(frozen=True)
class Bounds:
    """A value agrees within one of them: `atol` absolute, `rtol` relative to the reference's value.

    None: `atol` is `tolerance`, as in the check after an export, of the largest magnitude of the output; `rtol` is 0.
    Integers must always be equal.
    """

    atol: float | None = None
    rtol: float | None = None


@dataclass(frozen=True)
class Output:
    """The worst of an output's runs.

    absolute  largest difference
    relative  the same over the largest magnitude of the reference
    walk      the schedule in which it was worst, see `runtime.walk.runs`: with the image size where there are several
    """

    name: str
    dtype: str
    absolute: float
    relative: float
    passed: bool
    walk: str = ""


@dataclass(frozen=True)
class Agreement:
    """One graph, run so many times on both backends."""

    graph: str
    runs: int
    outputs: tuple[Output, ...]

    @property
    def passed(self) -> bool:
        return self.worst.passed

    @property
    def worst(self) -> Output:
        """The output that differs most; one that fails is worse than any that does not."""
        return max(self.outputs, key=_badness)


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
    """Every graph that these schedules run for any image size and that gives any values, in the manifest's order.

    Raises:
        BackendMissing: Polygraphy is not installed.
    """
    check_polygraphy()
    from secateur.evaluation.comparator import Runner, compare

    walks = every_run(bundle.manifest, schedules)
    graphs = {graph.name: graph for graph in bundle.manifest.graphs}
    share = tolerance(bundle.manifest).values
    found: dict[str, list[list[Output]]] = {}
    for done, (label, run) in enumerate(walks.items()):
        progress("check", label, done, len(walks))
        recording = Recording(reference, max(reference.masked_past, candidate.masked_past))
        _walk(run, recording, bundle.prompt)
        for name, feeds in recording.feeds.items():
            candidate.load(graphs[name])
            pair = Runner("found", candidate, graphs[name]), Runner("expected", reference, graphs[name])
            for feed in feeds:
                outputs = compare(pair, feed, bounds, share)
                found.setdefault(name, []).append([replace(output, walk=label) for output in outputs])
    progress("check", "", len(walks), len(walks))
    return tuple(Agreement(name, len(found[name]), _worst(found[name])) for name in graphs if any(found.get(name, ())))


def _walk(run: SizedSchedule, backend: base.Backend, prompt: Prompt) -> None:
    """Prefill and one decode step on a made picture and question."""
    watch, chain = Stopwatch(), Chain(run.manifest, backend, [run.schedule])
    pixels, rows = example(run.manifest, prompt)
    cache = chain.cache(1, rows.input_ids.shape[1] + 1, run.schedule)
    walk = chain.prefill(rows, chain.see(pixels, run.schedule, watch), run.schedule, cache, watch)
    chain.step(TokenBatch.pad([[int(walk.logits.argmax())]], prompt.pad, cache.position), cache)


def _badness(output: Output) -> tuple[bool, float]:
    return not output.passed, output.relative


def _worst(runs: list[list[Output]]) -> tuple[Output, ...]:
    """The outputs of one graph over its runs; one that is empty in a run does not count there."""
    worst: dict[str, Output] = {}
    for output in (output for run in runs for output in run):
        before = worst.get(output.name, output)
        worst[output.name] = replace(
            max(before, output, key=_badness),
            absolute=max(before.absolute, output.absolute),
            relative=max(before.relative, output.relative),
        )
    return tuple(worst.values())
