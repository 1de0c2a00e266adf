# SPDX-License-Identifier: Apache-2.0
"""Comparison of two backends, graph by graph, on the same inputs, by Polygraphy.

The reference backend runs the whole chain, prefill and one decode step, for every image size and schedule; the other
backend repeats each of its runs with the same inputs.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from secateur.bundle.graph_plan import SizedSchedule
from secateur.bundle.graph_plan import runs as every_run
from secateur.bundle.prompt import Prompt
from secateur.bundle.reader import Bundle
from secateur.errors import BackendMissing
from secateur.export.comparison import example, tolerance
from secateur.progress import Progress, silent
from secateur.runtime.backends import base
from secateur.runtime.chain import Chain
from secateur.runtime.decoder_inputs import TokenBatch
from secateur.runtime.observed_backend import Buffers, ObservedBackend, replay
from secateur.runtime.receipt import Stopwatch

Arrays = Mapping[str, base.Array]


@dataclass(frozen=True)
class Bounds:
    """Allowed difference of a value: `atol` absolute, or `rtol` relative to the reference's value.

    If they are None, `atol` is `tolerance` (as after an export) times the largest magnitude of the output, `rtol` 0.
    Integers must always be equal.
    """

    atol: float | None = None
    rtol: float | None = None


@dataclass(frozen=True)
class Output:
    """The worst result of one output over all runs.

    absolute  largest difference
    relative  the same over the largest magnitude of the reference
    walk      the schedule of the worst run, with the image size if there are several, see `graph_plan.runs`
    """

    name: str
    dtype: str
    absolute: float
    relative: float
    passed: bool
    walk: str = ""


@dataclass(frozen=True)
class Agreement:
    """Results of one graph, run `runs` times on both backends."""

    graph: str
    runs: int
    outputs: tuple[Output, ...]

    @property
    def passed(self) -> bool:
        return self.worst.passed

    @property
    def worst(self) -> Output:
        """Return the output that differs most; one that fails is worse than any that passes."""
        return max(self.outputs, key=_badness)


def check_polygraphy() -> None:
    """Check that Polygraphy is installed, before backends are opened, which may take minutes.

    Raises:
        BackendMissing: Polygraphy is not installed.
    """
    if importlib.util.find_spec("polygraphy") is None:
        raise BackendMissing("comparing backends needs Polygraphy; pip install 'polygraphy>=0.53'")


def compare_backends(
    bundle: Bundle,
    reference: base.Backend,
    candidate: base.Backend,
    schedules: Sequence[str],
    bounds: Bounds = Bounds(),
    progress: Progress = silent,
) -> tuple[Agreement, ...]:
    """Compare every graph that these schedules run and that returns any values, in the order of the manifest.

    Raises:
        BackendMissing: Polygraphy is not installed.
    """
    check_polygraphy()
    walks = every_run(bundle.manifest, schedules)
    graphs = {graph.name: graph for graph in bundle.manifest.graphs}
    share = tolerance(bundle.manifest).values
    found: dict[str, list[list[Output]]] = {}
    label = ""

    def compare(graph: str, inputs: Buffers, outputs: Buffers) -> None:
        candidate.load(graphs[graph])
        results = replay(candidate, graph, inputs, outputs)
        expected = {name: buffer.numpy() for name, buffer in outputs.items()}
        compared = _compare(results, expected, bounds, share)
        found.setdefault(graph, []).append([replace(output, walk=label) for output in compared])

    observed = ObservedBackend(reference, compare)
    observed.masked_past = max(reference.masked_past, candidate.masked_past)
    for done, (label, run) in enumerate(walks.items()):
        progress("check", label, done, len(walks))
        _walk(run, observed, bundle.prompt)
    progress("check", "", len(walks), len(walks))
    return tuple(Agreement(name, len(found[name]), _worst(found[name])) for name in graphs if any(found.get(name, ())))


def _compare(found: Arrays, expected: Arrays, bounds: Bounds, share: float) -> list[Output]:
    """Compare the outputs of one run by Polygraphy; outputs without values are left out."""
    from polygraphy.comparator import IterationResult, SimpleCompareFunc
    from polygraphy.logger import G_LOGGER

    expected = {name: array for name, array in expected.items() if array.size}
    found = {name: found[name] for name in expected}
    with G_LOGGER.verbosity(), np.errstate(all="ignore"):  # Polygraphy writes to stdout and divides by zero
        sizes = {name: float(np.abs(array.astype(np.float64)).max()) for name, array in expected.items()}
        exact = {name: 0.0 for name, array in expected.items() if not np.issubdtype(array.dtype, np.floating)}
        atol = {name: share * size if bounds.atol is None else bounds.atol for name, size in sizes.items()}
        rtol = dict.fromkeys(sizes, bounds.rtol or 0.0)
        rule = SimpleCompareFunc(atol=atol | exact, rtol=rtol | exact)
        results = rule(IterationResult(found, 0.0, "found"), IterationResult(expected, 0.0, "expected"))
    outputs = []
    for name, array in expected.items():
        difference = results[name].max_absdiff
        difference = difference if difference == difference else float("inf")
        relative = difference / max(sizes[name], 1e-12)
        outputs.append(Output(name, array.dtype.name, difference, relative, bool(results[name])))
    return outputs


def _walk(run: SizedSchedule, backend: base.Backend, prompt: Prompt) -> None:
    """Run the prefill and one decode step on a generated image and question."""
    watch, chain = Stopwatch(), Chain(run.manifest, backend, [run.schedule])
    pixels, rows = example(run.manifest, prompt)
    cache = chain.cache(1, rows.input_ids.shape[1] + 1, run.schedule)
    walk = chain.prefill(rows, chain.encode(pixels, run.schedule, watch), run.schedule, cache, watch)
    chain.step(TokenBatch.pad([[int(walk.logits.argmax())]], prompt.pad, cache.position), cache)


def _badness(output: Output) -> tuple[bool, float]:
    return not output.passed, output.relative


def _worst(runs: list[list[Output]]) -> tuple[Output, ...]:
    """Return the worst result of each output of one graph; runs in which it is empty do not count."""
    worst: dict[str, Output] = {}
    for output in (output for run in runs for output in run):
        before = worst.get(output.name, output)
        worst[output.name] = replace(
            max(before, output, key=_badness),
            absolute=max(before.absolute, output.absolute),
            relative=max(before.relative, output.relative),
        )
    return tuple(worst.values())
