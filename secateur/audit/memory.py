# SPDX-License-Identifier: Apache-2.0
"""Memory that a bundle needs on a device, computed from its manifest and an audit of all its graphs."""

from __future__ import annotations

from collections.abc import Sequence

from secateur.audit.results import GraphAudit, Memory
from secateur.bundle.graph_plan import dropped, largest, runs
from secateur.bundle.manifest import Manifest
from secateur.bundle.reader import Bundle
from secateur.engines.manifest import Limits


def device_memory(bundle: Bundle, limits: Limits, graphs: Sequence[GraphAudit]) -> Memory:
    """Return the memory of a bundle at the limits of its engines; `graphs` are all its graphs, compiled."""
    files = {weight.file for weight in bundle.manifest.weights}
    weights = sum(bundle.path(file).stat().st_size for file in files)
    plans = sum(graph.plan for graph in graphs)
    activations = max(profile.scratch for graph in graphs for profile in graph.profiles)
    capacity = limits.capacity(largest(bundle.manifest))
    cache = {
        label: limits.batch * cached_bytes(run.manifest, run.schedule, capacity)
        for label, run in runs(bundle.manifest).items()
    }
    total = {name: weights + plans + activations + own for name, own in cache.items()}
    return Memory(weights, plans, activations, cache, total)


def cached_bytes(manifest: Manifest, schedule: str, capacity: int) -> int:
    """Return the bytes of a KV cache of one sample; `capacity` rows before any gate."""
    d = manifest.dimensions
    row = 2 * d.kv_heads * d.head_dim * (4 if manifest.dtype == "fp32" else 2)
    layers = [segment.layers[1] - segment.layers[0] for segment in manifest.segments if segment.layers]
    rows = [capacity - gone for gone in dropped(manifest, schedule)]
    return row * sum(count * own for count, own in zip(layers, rows, strict=True))
