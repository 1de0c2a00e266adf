# SPDX-License-Identifier: Apache-2.0
"""Limits of the engines, and the optimization profiles and timing cases of every graph within them.

A segment has two profiles. "prefill" covers the first question (S from the rows of the schedules, no past) and a
follow-up question (S short, P up to the capacity). "decode" has S = 1 and its optimum at the largest P, because a
decode step attends over the whole KV cache. embed and rotary have the same two profiles. Every other graph has one
profile, "all". min, opt and max are each a consistent set of sizes, so that a dimension such as P+S is valid in each of
them. opt is for one sample; the encoder's graphs run on all images of a sample at once. Segments are used for every
image size of a bundle, so their max is for the largest one; their opt is for the first one.

The first question has no past. TensorRT supports empty tensors and a minimum size of 0 in a profile ("Working with
Empty Tensors" in its guide; trtexec allocates one byte for them, samples/common/sampleInference.cpp). No version is
known to refuse them. If one does, --masked-past makes the profiles start at one masked row, and the runtime reads this
from engines.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from secateur.bundle.graph_plan import USUAL_TEXT, GraphRun, decode, largest, prefill, runs
from secateur.bundle.manifest import GraphSpec, Manifest
from secateur.bundle.reader import Bundle
from secateur.bundle.sampling import Sampling
from secateur.bundle.symbolic_shape import resolve_shapes
from secateur.engines.cases import Case
from secateur.engines.manifest import Limits, Profile, Range
from secateur.errors import BadBundle, InputError
from secateur.runtime.cache import rounded
from secateur.runtime.tokenizer import Tokenizer

Symbols = dict[str, int]
MAX_BATCH = 1024
IMAGES = "images"
"""Key among the sizes of a graph: how many entries of its batch belong to one sample."""


def limits(manifest: Manifest, batch: int = 1, text: int | None = None, new_tokens: int | None = None) -> Limits:
    """Return the limits for a bundle, with room for its largest image size.

    None selects the default value, or less if the model's context is short.

    Raises:
        InputError: a number is below 1, or the rows together exceed the context; the message names the flag.
    """
    usual = Limits()
    for flag, value in (("--max-batch", batch), ("--max-text", text), ("--max-new-tokens", new_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}; it must be at least 1")
    if batch > MAX_BATCH:
        raise InputError(f"--max-batch is {batch}; it must be at most {MAX_BATCH}")
    layout, context = largest(manifest), manifest.dimensions.context
    room = context - layout.rows
    if new_tokens is None:
        new_tokens = max(1, min(usual.new_tokens, room // 2 if text is None else room - text))
    if text is None:
        text = max(1, min(usual.text, room - new_tokens))
    made = Limits(batch, text, new_tokens)
    if made.capacity(layout) > context:
        raise InputError(
            f"{layout.rows} rows up to the image's end, --max-text {text} and --max-new-tokens {new_tokens} are "
            f"{made.capacity(layout)} rows; the model's context has {context}; lower --max-text or --max-new-tokens"
        )
    return made


def check_text(bundle: Bundle, made: Limits) -> None:
    """Check that a question fits into the limits.

    Raises:
        InputError: even a question of one letter does not fit, with its template.
    """
    least = len(Tokenizer.read(bundle.prompt, bundle.path("tokenizer.json")).first("a"))
    if made.text < least:
        raise InputError(
            f"--max-text is {made.text}; the shortest question has {least} rows with its template; "
            "raise --max-text or lower --max-new-tokens"
        )


def profiles(manifest: Manifest, limits: Limits, usual: str, past: int = 0) -> dict[str, tuple[Profile, ...]]:
    """Return the profiles of each graph by name.

    usual  schedule whose row counts are the optimum
    past   minimum rows in the past of a prefill: 0, or 1 masked row

    Raises:
        BadBundle: no schedule runs a graph.
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
        elif graph.kind in ("embed", "rotary"):
            one = dict.fromkeys(low, 1)
            made[graph.name] = (
                _profile("prefill", graph, one, best, high, limits),
                _profile("decode", graph, one, one, one, limits),
            )
        else:
            made[graph.name] = (_profile("all", graph, low, best, high, limits),)
    return made


def cases(manifest: Manifest, limits: Limits, past: int = 0) -> tuple[Case, ...]:
    """Return the cases of every run for a question of usual length and for each token of its answer, at batch 1.

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
        made.append(
            Case(name, graph.name, step.kind, int(step.kind == "decode"), shapes, tuple(dict.fromkeys(schedules)))
        )
    return tuple(made)


def dynamic(graph: GraphSpec) -> tuple[str, ...]:
    """Return the names of the inputs with a dynamic dimension. trtexec accepts shapes for these only."""
    return tuple(spec.name for spec in graph.inputs if any(isinstance(size, str) for size in spec.shape))


def _name(step: GraphRun) -> str:
    """Return the name of a case, such as "segment_1.prefill-P0-S99"."""
    return f"{step.graph}.{step.kind}" + "".join(f"-{symbol}{size}" for symbol, size in step.symbols.items())


def _extremes(
    graph: GraphSpec, first: Iterable[GraphRun], ordinary: Iterable[GraphRun]
) -> tuple[Symbols, Symbols, Symbols]:
    """Return sizes of the graph: the minimum of `first`, those of the first `ordinary` step, the maximum of `first`."""
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
