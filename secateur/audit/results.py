# SPDX-License-Identifier: Apache-2.0
"""Results of an audit: what the compiler makes of each graph and profile, and what is wrong with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from secateur.report.formats import Document

EXPLANATIONS = {
    "kernels": "kernels that the GPU starts for one run of the graph with the shapes of this profile",
    "a layer": "kernels for each decoder layer of a segment",
    "fused": "decoder layers of a segment whose attention is one kernel, which does not write scores to memory",
    "copies": "kernels that only copy, transpose or convert a weight: the same work in every step",
    "plan": "size of the plan, for all profiles together; weights in it, except int4, are there once for each profile",
    "scratch": "memory for activations at the largest shapes of the profile; engines share one block, the largest",
    "moved": "bytes that all kernels read and write at the profile's optimal shapes, compiled for these alone",
    "least": "bytes of each input, output and weight of the graph at these shapes, once",
    "ratio": "moved over least; 1 is the optimum. It matters most in decode steps, which are bound by memory; in "
    "prefill, kernels also write and read the activations between them",
}
"""The figures of an audit, one line each."""
MEMORY = (
    "If only the schedule of the row is loaded. Weights are on the device once, for all plans; the scratch memory is "
    "the largest one, since engines run one after the other; the KV cache has the most rows that the engines allow. "
    "CUDA, the library and small buffers between the graphs come on top."
)


@dataclass(frozen=True)
class KernelGroup:
    """Kernels of a profile with the same label, and the bytes that they move together."""

    label: str
    kernels: int
    bytes: int


@dataclass(frozen=True)
class ProfileAudit:
    """Figures of one profile of a graph, see EXPLANATIONS. Sizes are in bytes; None if the log does not have them.

    shapes     optimal shapes of the dynamic inputs
    attention  number of kernels of fused attention
    products   number of matrix products
    copies     names of the kernels that copy a weight
    largest    kernels that move most at the optimal shapes
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    kernels: int
    attention: int
    products: int
    copies: tuple[str, ...]
    scratch: int
    moved: int | None
    least: int | None
    largest: tuple[KernelGroup, ...]

    @property
    def ratio(self) -> float | None:
        return None if self.moved is None or not self.least else self.moved / self.least


@dataclass(frozen=True)
class GraphAudit:
    """Figures of one graph.

    layers    decoder layers of a segment; 0 for other graphs
    plan      bytes
    warnings  of the compiler
    error     why it was not compiled; then the figures are missing
    """

    name: str
    kind: str
    layers: int
    plan: int
    profiles: tuple[ProfileAudit, ...]
    warnings: tuple[str, ...] = ()
    error: str = ""

    @property
    def problems(self) -> list[str]:
        """What makes the audit fail, one line each."""
        found = [f"{self.name}: {self.error}"] if self.error else []
        for profile in self.profiles:
            where = f"{self.name}, {profile.name}"
            if profile.attention < self.layers:
                count = f"{self.layers - profile.attention} of {self.layers} layers"
                found.append(f"{where}: the attention of {count} is not fused")
            if profile.copies:
                copies = f"{len(profile.copies)}, such as {profile.copies[0]}"
                found.append(f"{where}: kernels that copy a weight in every step: {copies}")
        return found


@dataclass(frozen=True)
class Memory:
    """Bytes on the device if one schedule is loaded, computed. CUDA, the library and small buffers come on top.

    weights      files that the backend reads, once for all plans
    plans        of the graphs of the schedule, with the weights that are baked into them
    activations  largest scratch memory of a profile: engines share one block
    cache        KV cache at the limits of the engines
    """

    weights: int
    plans: int
    activations: int
    cache: int
    total: int


@dataclass(frozen=True)
class Audit(Document):
    """The document of one audit.

    compiler      name and version
    capabilities  compute capabilities that it compiled for, "86"
    memory        of each schedule; None if not all graphs of the bundle were compiled
    schedule      schedule whose row counts are the optimum of the profiles
    """

    bundle: str
    model: str
    target: str
    dtype: str
    schedule: str
    compiler: str
    capabilities: tuple[str, ...]
    command: str
    graphs: tuple[GraphAudit, ...]
    memory: dict[str, Memory] | None = None

    @property
    def problems(self) -> list[str]:
        """What is wrong, one line each; empty if the audit passes."""
        return [problem for graph in self.graphs for problem in graph.problems]

    def as_dict(self) -> dict[str, Any]:
        """Return the document as plain values, with ratios and problems."""
        made = super().as_dict()
        for graph, one in zip(made["graphs"], self.graphs, strict=True):
            for profile, figures in zip(graph["profiles"], one.profiles, strict=True):
                profile["ratio"] = figures.ratio
        return made | {"problems": self.problems}
