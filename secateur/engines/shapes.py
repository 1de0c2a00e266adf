# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles and timing cases of every graph, from the manifest and the limits.

A segment has two profiles: "prefill" admits the first question (S from the rows of the schedules, no past) and a
further one (S short, P up to the capacity); "decode" has S = 1 and is best at the largest P, because a step attends
over the whole cache. So has embed, with T. Every other graph has one, "all". The sizes at min, opt and max belong
together, so that a dimension such as P+S holds at each of them. opt is at one sample; the encoder's graphs run on all
images of a sample at once. Segments serve every image size of a bundle, so their profiles have room for the largest;
opt is that of the first.

The first question has no past at all. TensorRT takes empty tensors and a least size of 0 in a profile ("Working with
Empty Tensors" in its guide; trtexec allocates a byte for them, samples/common/sampleInference.cpp). No version is known
to refuse them. Should one, --masked-past lets the profiles start at one row that the mask hides, and the runtime reads
that from engines.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from secateur.bundle.graph_plan import USUAL_TEXT, GraphRun, decode, largest, prefill, runs
from secateur.bundle.manifest import GraphSpec, Manifest
from secateur.bundle.symbolic_shape import resolve_shapes
from secateur.engines.cases import Case
from secateur.engines.manifest import Limits, Profile, Range
from secateur.errors import BadBundle
from secateur.runtime.cache import rounded
from secateur.runtime.sampling import Sampling

Symbols = dict[str, int]
IMAGES = "images"
"""Among the sizes of a graph: how many of its batch are one sample."""


def profiles(manifest: Manifest, limits: Limits, usual: str, past: int = 0) -> dict[str, tuple[Profile, ...]]:
    """The profiles of each graph by name.

    usual  schedule whose row counts are the optimum
    past   rows that the past of a prefill has at least: 0, or 1 masked row

    Raises:
        BadBundle: a graph belongs to no schedule.
    """
    text = min(USUAL_TEXT, limits.text)
    every = [run for name in (usual, *manifest.schedules) for run in runs(manifest, [name]).values()]
    first = [step for run in every for length in (1, limits.text) for step in prefill(*run, length)]
    ordinary = [step for run in every for step in prefill(*run, text)]
    capacity = limits.capacity(largest(manifest)) + past
    made: dict[str, tuple[Profile, ...]] = {}
    for graph in manifest.graphs:
        low, best, high = _extremes(graph, first, ordinary)
        if graph.kind == "segment":
            whole = {"S": 1, "P": capacity}
            made[graph.name] = (
                _profile("prefill", graph, {"S": 1, "P": past}, best | {"P": past}, high | {"P": capacity}, limits),
                _profile("decode", graph, {"S": 1, "P": 1}, whole, whole, limits),
            )
        elif graph.kind == "embed":
            one = {"T": 1}
            made[graph.name] = (
                _profile("prefill", graph, one, best, high, limits),
                _profile("decode", graph, one, one, one, limits),
            )
        else:
            made[graph.name] = (_profile("all", graph, low, best, high, limits),)
    return made


def cases(manifest: Manifest, limits: Limits, past: int = 0) -> tuple[Case, ...]:
    """What each of `runs` takes for an ordinary question and for each token of an answer of usual length, at batch 1.

    A graph that several of them run at the same shapes is one case.
    """
    text = min(USUAL_TEXT, limits.text)
    usual = Limits(text=text, new_tokens=min(Sampling().max_new_tokens, limits.new_tokens))
    most = limits.capacity(largest(manifest))
    found: dict[str, tuple[GraphRun, list[str]]] = {}
    for label, run in runs(manifest).items():
        capacity = rounded(usual.capacity(run.manifest.layout), most)
        for step in (*prefill(*run, text, past), *decode(*run, capacity, past)):
            found.setdefault(_name(step), (step, []))[1].append(label)
    made = []
    for name, (step, schedules) in found.items():
        graph = manifest.graph(step.graph)
        shapes = resolve_shapes(graph.inputs, step.symbols | {"B": step.images})
        made.append(Case(name, graph.name, step.kind, int(step.kind == "decode"), shapes, tuple(schedules)))
    return tuple(made)


def dynamic(graph: GraphSpec) -> tuple[str, ...]:
    """Names of the inputs that have a dynamic dimension; only these may be given shapes."""
    return tuple(spec.name for spec in graph.inputs if any(isinstance(size, str) for size in spec.shape))


def _name(step: GraphRun) -> str:
    """Such as "segment_1.prefill-P0-S99"."""
    return f"{step.graph}.{step.kind}" + "".join(f"-{symbol}{size}" for symbol, size in step.symbols.items())


def _extremes(
    graph: GraphSpec, first: Iterable[GraphRun], ordinary: Iterable[GraphRun]
) -> tuple[Symbols, Symbols, Symbols]:
    """Sizes of the graph: least and largest of the steps `first`, and between them those of the first of `ordinary`."""
    sizes = [step.symbols | {IMAGES: step.images} for step in first if step.graph == graph.name]
    if not sizes:
        raise BadBundle(f"no schedule runs the graph '{graph.name}'; export the bundle again")
    low, high = ({symbol: pick(s[symbol] for s in sizes) for symbol in sizes[0]} for pick in (min, max))
    return low, next(step.symbols | {IMAGES: step.images} for step in ordinary if step.graph == graph.name), high


def _profile(
    name: str,
    graph: GraphSpec,
    low: Mapping[str, int],
    best: Mapping[str, int],
    high: Mapping[str, int],
    limits: Limits,
) -> Profile:
    specs = [spec for spec in graph.inputs if spec.name in dynamic(graph)]
    least, usual, most = (
        resolve_shapes(specs, {**symbols, "B": batch * symbols.get(IMAGES, 1)})
        for symbols, batch in ((low, 1), (best, 1), (high, limits.batch))
    )
    return Profile(name, {spec.name: Range(least[spec.name], usual[spec.name], most[spec.name]) for spec in specs})
