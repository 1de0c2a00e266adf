# SPDX-License-Identifier: Apache-2.0
"""Memory that a bundle needs on a device, computed from its manifest and an audit of all its graphs."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.audit.results import GraphAudit, Memory
from secateur.bundle.graph_plan import dropped, largest, prefill, runs
from secateur.bundle.manifest import Manifest
from secateur.bundle.reader import Bundle
from secateur.engines.manifest import Limits


def device_memory(bundle: Bundle, limits: Limits, graphs: Sequence[GraphAudit]) -> dict[str, Memory]:
    """Return the memory of each schedule at the limits of its engines; `graphs` are all graphs, compiled."""
    files = {weight.file for weight in bundle.manifest.weights}
    weights = sum(bundle.path(file).stat().st_size for file in files)
    capacity = limits.capacity(largest(bundle.manifest))
    found = {}
    for label, run in runs(bundle.manifest).items():
        used = {step.graph for step in prefill(run.manifest, run.schedule, 1)}
        own = [graph for graph in graphs if graph.name in used]
        plans = sum(graph.plan for graph in own)
        activations = max(profile.scratch for graph in own for profile in graph.profiles)
        cache = limits.batch * cached_bytes(run.manifest, run.schedule, capacity)
        found[label] = Memory(weights, plans, activations, cache, weights + plans + activations + cache)
    return found


def cached_bytes(manifest: Manifest, schedule: str, capacity: int) -> int:
    """Return the bytes of a KV cache of one sample; `capacity` rows before any gate."""
    d = manifest.dimensions
    row = 2 * d.kv_heads * d.head_dim * (4 if manifest.dtype == "fp32" else 2)
    layers = [segment.layers[1] - segment.layers[0] for segment in manifest.segments if segment.layers]
    rows = [capacity - gone for gone in dropped(manifest, schedule)]
    return row * sum(count * own for count, own in zip(layers, rows, strict=True))
