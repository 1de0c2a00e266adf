# SPDX-License-Identifier: Apache-2.0
"""After an export: every graph, and the whole chain, against the same modules run by torch.

Graphs of a large bundle are opened one at a time, so the check needs the memory of the model and one graph.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from secateur.artifacts import GraphSpec
from secateur.export.examples import example
from secateur.models.base import Family
from secateur.progress import Progress, silent
from secateur.runtime.backends import base, ort
from secateur.runtime.backends import torch as eager
from secateur.runtime.bundle import Bundle
from secateur.runtime.chain import Chain, Walk
from secateur.runtime.receipt import Stopwatch
from secateur.runtime.rows import Rows

TOLERANCE = {"fp32": 1e-4, "fp16": 3e-2}
KEPT_TOLERANCE = {"fp32": 0.0, "fp16": 0.25}
DECODE_STEPS = 2
RESIDENT_BYTES = 256 << 20


@dataclass(frozen=True)
class Parity:
    """One comparison.

    error  largest difference over the largest magnitude of torch's value, inf where integers differ; for kept tokens
           the share of others
    """

    name: str
    error: float
    tolerance: float
    passed: bool


class Paired(base.Backend):
    """Runs each graph on two backends with the same inputs and notes the worst error; the reference's outputs go on."""

    def __init__(self, reference: base.Backend, candidate: base.Backend) -> None:
        self.reference = reference
        self.candidate = candidate
        self.worst: dict[str, float] = {}

    def load(self, graph: GraphSpec) -> None:
        self.reference.load(graph)
        self.candidate.load(graph)

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> base.Buffer:
        return self.reference.allocate(shape, dtype)

    def run(self, graph: str, inputs: Mapping[str, base.Buffer], outputs: Mapping[str, base.Buffer]) -> None:
        copies = {name: self._copy(buffer) for name, buffer in inputs.items()}
        results = {name: self.candidate.allocate(buffer.shape, buffer.dtype) for name, buffer in outputs.items()}
        self.reference.run(graph, inputs, outputs)
        self.candidate.run(graph, copies, results)
        for name, result in results.items():
            self.worst[graph] = max(self.worst.get(graph, 0.0), error(result.numpy(), outputs[name].numpy()))

    def close(self) -> None:
        self.reference.close()
        self.candidate.close()

    def _copy(self, buffer: base.Buffer) -> base.Buffer:
        copy = self.candidate.allocate(buffer.shape, buffer.dtype)
        copy.write(buffer.numpy())
        return copy


def error(found: base.Array, expected: base.Array) -> float:
    """Largest difference over the largest magnitude of `expected`; integers must be equal (0 or inf)."""
    if not np.issubdtype(expected.dtype, np.floating):
        return 0.0 if np.array_equal(found, expected) else float("inf")
    if expected.size == 0:
        return 0.0
    difference = np.abs(found.astype(np.float64) - expected.astype(np.float64)).max()
    worst = float(difference / max(np.abs(expected.astype(np.float64)).max(), 1e-12))
    return worst if np.isfinite(worst) else float("inf")


def check(
    bundle: Bundle,
    family: Family,
    progress: Progress = silent,
) -> tuple[Parity, ...]:
    """Compare a bundle on ONNX Runtime with `family` on torch: prefill and two decode steps of every schedule."""
    manifest = bundle.manifest
    small = sum(path.stat().st_size for path in bundle.root.rglob("*")) < RESIDENT_BYTES
    candidate_backend = ort.Backend(bundle, resident=small)
    paired = Paired(eager.Backend(bundle, family=family), candidate_backend)
    reference, candidate = Chain(manifest, paired), Chain(manifest, candidate_backend)
    chains = [_model(reference, bundle, family)]
    for done, name in enumerate(manifest.schedules):
        progress("check", name, done, len(manifest.schedules))
        expected = _walks(reference, bundle, name)
        found = _walks(candidate, bundle, name, [int(walk.logits.argmax()) for walk in expected])
        chains += _chain(name, found, expected, manifest.dtype)
    progress("check", "", len(manifest.schedules), len(manifest.schedules))
    graphs = [
        _parity(g.name, paired.worst.get(g.name, float("inf")), TOLERANCE[manifest.dtype]) for g in manifest.graphs
    ]
    return tuple(sorted([*graphs, *chains], key=lambda p: (p.passed, -p.error)))


def _model(chain: Chain, bundle: Bundle, family: Family) -> Parity:
    """The segments, run by torch, against the model's own forward pass: does the decoder more than its layers?"""
    walk = _walks(chain, bundle, "full", steps=0)[0]
    image, rows = example(bundle)
    layout = bundle.manifest.layout
    placeholder = family.model.config.image_token_id
    ids = rows.input_ids[0].tolist()
    ids[layout.image_start : layout.image_start + layout.vision_tokens] = [placeholder] * layout.vision_tokens
    worst = error(walk.logits[0], family.logits(ids, image))
    return _parity("segments against the model", worst, TOLERANCE[bundle.manifest.dtype])


def _chain(name: str, found: list[Walk], expected: list[Walk], dtype: str) -> list[Parity]:
    """The logits of the whole chain, and the share of tokens that its gates kept and torch's did not.

    In half precision the chains drift apart by rounding, and tokens of nearly equal score change places; logits
    are compared where that did not happen. The gates themselves, given equal inputs, must agree exactly.
    """
    pairs = [(a, b) for x, y in zip(found, expected, strict=True) for a, b in zip(x.kept, y.kept, strict=True)]
    common, kept = sum(np.intersect1d(a, b).size for a, b in pairs), sum(b.size for _, b in pairs)
    compared = "" if common == kept else " (so logits not compared)"
    checks = [_parity(f"other tokens kept, {name}{compared}", 1 - common / kept, KEPT_TOLERANCE[dtype])] if kept else []
    if common == kept:
        worst = max(error(x.logits, y.logits) for x, y in zip(found, expected, strict=True))
        checks.append(_parity(f"chain, {name}", worst, TOLERANCE[dtype]))
    return checks


def _parity(name: str, worst: float, tolerance: float) -> Parity:
    return Parity(name, worst, tolerance, worst <= tolerance)


def _walks(
    chain: Chain, bundle: Bundle, schedule: str, tokens: list[int] | None = None, steps: int = DECODE_STEPS
) -> list[Walk]:
    """Prefill and decode steps on a fixed image and question; `tokens` are fed, or each step's likeliest."""
    watch = Stopwatch()
    image, rows = example(bundle)
    seen = chain.see(image, schedule, watch)
    cache = chain.cache(1, rows.input_ids.shape[1] + steps, schedule)
    walks = [chain.prefill(rows, seen, schedule, cache, watch)]
    for step in range(steps):
        token = int(walks[-1].logits.argmax()) if tokens is None else tokens[step]
        walks.append(chain.extend(Rows.pad([[token]], bundle.prompt.pad, cache.position), cache, watch))
    return walks
