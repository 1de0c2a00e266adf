# SPDX-License-Identifier: Apache-2.0
"""Check after an export: compare every graph, and the whole chain, with the same modules run by torch.

Graphs of a large bundle are opened one at a time, so the check needs the memory of the model and one graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from secateur.bundle.manifest import Manifest
from secateur.bundle.prompt import Prompt
from secateur.bundle.reader import Bundle
from secateur.export.comparison import Example, example, tolerance
from secateur.families.base import Family
from secateur.progress import Progress, silent
from secateur.runtime.backends import base, ort
from secateur.runtime.backends import torch as eager
from secateur.runtime.chain import Chain, Walk
from secateur.runtime.decoder_inputs import TokenBatch
from secateur.runtime.observed_backend import Buffers, ObservedBackend, replay
from secateur.runtime.range_check import is_float
from secateur.runtime.receipt import Stopwatch

MODEL = "segments against the model"
"""Name of the comparison with the model's own forward pass."""
DECODE_STEPS = 2
RESIDENT_BYTES = 256 << 20


@dataclass(frozen=True)
class Parity:
    """One comparison.

    error  largest difference over the largest magnitude of torch's value, inf where integers differ; for kept tokens
           the share of tokens that torch does not keep
    """

    name: str
    error: float
    tolerance: float
    passed: bool


def error(found: base.Array, expected: base.Array) -> float:
    """Return the largest difference over the largest magnitude of `expected`; for integers 0 if equal, else inf."""
    if not is_float(expected.dtype):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    if expected.size == 0:
        return 0.0
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    worst = float(difference / max(np.abs(expected.astype(np.float64)).max(), 1e-12))
    return worst if np.isfinite(worst) else float("inf")


def check(bundle: Bundle, family: Family, progress: Progress = silent) -> tuple[Parity, ...]:
    """Compare a bundle on ONNX Runtime with `family` on torch: prefill and two decode steps of every schedule.

    For every image size, also compare the segments, run by torch, with the model's own forward pass; bf16 bundles get
    this comparison alone.
    """
    with closing(eager.Backend(bundle, family=family)) as reference:
        if bundle.manifest.dtype == "bf16":  # ONNX Runtime's CPU has no kernels for it
            return tuple(_models(bundle, reference, family))
        small = sum(path.stat().st_size for path in bundle.root.rglob("*")) < RESIDENT_BYTES
        with closing(ort.Backend(bundle, resident=small, mapped=None if small else True)) as candidate:
            return _check(bundle, family, reference, candidate, progress)


def _models(bundle: Bundle, reference: base.Backend, family: Family) -> Iterator[Parity]:
    """Compare, for each image size, the segments with the model's own forward pass, both on torch."""
    for number, bucket in enumerate(bundle.manifest.buckets):
        suffix = f", {bucket.layout.size}" if number else ""
        yield _model(Chain(bucket, reference), family, example(bucket, bundle.prompt), suffix)


def _check(
    bundle: Bundle, family: Family, reference: base.Backend, candidate: base.Backend, progress: Progress
) -> tuple[Parity, ...]:
    manifest = bundle.manifest
    worst: dict[str, float] = {}

    def compare(graph: str, inputs: Buffers, outputs: Buffers) -> None:
        for name, found in replay(candidate, graph, inputs, outputs).items():
            worst[graph] = max(worst.get(graph, 0.0), error(found, outputs[name].numpy()))

    observed = ObservedBackend(reference, compare)
    chains, done, total = list[Parity](), 0, sum(len(bucket.schedules) for bucket in manifest.buckets)
    for number, bucket in enumerate(manifest.buckets):
        torch_chain, onnx_chain = Chain(bucket, observed), Chain(bucket, candidate)
        suffix = f", {bucket.layout.size}" if number else ""
        given = example(bucket, bundle.prompt)
        chains.append(_model(torch_chain, family, given, suffix))
        for name in bucket.schedules:
            progress("check", name, done, total)
            expected = walks(torch_chain, given, bundle.prompt, name)
            tokens = [int(walk.logits.argmax()) for walk in expected]
            found = walks(onnx_chain, given, bundle.prompt, name, tokens)
            chains += _chain(f"{name}{suffix}", found, expected, manifest)
            done += 1
    progress("check", "", total, total)
    graphs = [_parity(g.name, worst.get(g.name, float("inf")), tolerance(manifest).values) for g in manifest.graphs]
    return tuple(sorted([*graphs, *chains], key=lambda p: (p.passed, -p.error)))


def _model(chain: Chain, family: Family, given: Example, suffix: str) -> Parity:
    """Compare the segments, run by torch, with the model's own forward pass, to find operations outside the layers."""
    layout = chain.manifest.layout
    walk = walks(chain, given, None, "full")[0]
    seen = family.at(layout.image_size, layout.images)
    question = given.rows.input_ids[0, layout.rows :].tolist()
    worst = error(walk.logits[0], seen.logits([*layout.ids(seen.image_token_id), *question], given.pixels))
    return _parity(f"{MODEL}{suffix}", worst, tolerance(chain.manifest).values)


def _chain(name: str, found: list[Walk], expected: list[Walk], manifest: Manifest) -> list[Parity]:
    """Compare the logits of the whole chain, and the tokens that the gates keep.

    In half precision, and with rows rounded to 8 bits, small differences can swap tokens of nearly equal score; logits
    are compared only where the kept tokens are equal. Single gates, given equal inputs, must agree exactly.
    """
    pairs = [(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x.kept, y.kept, strict=True)]
    common, kept = sum(np.intersect1d(a, b).size for a, b in pairs), sum(b.size for _, b in pairs)
    compared = "" if common == kept else " (so logits not compared)"
    checks = (
        [_parity(f"other tokens kept, {name}{compared}", 1 - common / kept, tolerance(manifest).kept)] if kept else []
    )
    if common == kept:
        worst = max(error(x.logits, y.logits) for x, y in zip(found, expected, strict=True))
        checks.append(_parity(f"chain, {name}", worst, tolerance(manifest).values))
    return checks


def _parity(name: str, worst: float, allowed: float) -> Parity:
    return Parity(name, worst, allowed, worst <= allowed)


def walks(
    chain: Chain, given: Example, prompt: Prompt | None, schedule: str, tokens: list[int] | None = None
) -> list[Walk]:
    """Run the prefill and, with `prompt`, decode steps on `tokens`, or on the most likely token of each step."""
    watch, steps = Stopwatch(), DECODE_STEPS if prompt else 0
    seen = chain.encode(given.pixels, schedule, watch)
    cache = chain.cache(1, given.rows.input_ids.shape[1] + steps, schedule)
    walks = [chain.prefill(given.rows, seen, schedule, cache, watch)]
    for step in range(steps):
        assert prompt is not None
        token = int(walks[-1].logits.argmax()) if tokens is None else tokens[step]
        walks.append(chain.extend(TokenBatch.pad([[token]], prompt.pad, cache.position), cache, watch))
    return walks
