# SPDX-License-Identifier: Apache-2.0
"""Compiles and counts one graph, in a process of its own (see `engines.jobs`).

The graph is compiled with its profiles, as for a plan, and once more for the optimal shapes of each profile alone: only
there does the compiler's log have the sizes of all tensors.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur.audit.results import KernelGroup, ProfileAudit
from secateur.engines.compiler import Compiled, compile_graph
from secateur.engines.jobs import serve
from secateur.engines.kernels import Kernel, moved
from secateur.engines.manifest import BuilderSettings, Profile, Range

LARGEST = 8
"""Kernels of a profile that are listed."""


@dataclass(frozen=True)
class AuditJob:
    """Task of a worker. `onnx` is an absolute path.

    weights   names of the inputs that are weights
    gathered  whether the graph only reads rows of its weights, as embed does
    """

    onnx: str
    profiles: tuple[Profile, ...]
    capabilities: tuple[str, ...]
    settings: BuilderSettings
    weights: tuple[str, ...] = ()
    gathered: bool = False


@dataclass(frozen=True)
class AuditResult:
    """Outcome of a job. `plan` is in bytes."""

    plan: int
    profiles: tuple[ProfileAudit, ...]
    warnings: tuple[str, ...]


def audit(job: AuditJob) -> AuditResult:
    """Compile the graph and count.

    Raises:
        BackendMissing: TensorRT for RTX is not installed.
        BuildFailed: it cannot parse or build the graph.
    """
    built = _compile(job, job.profiles)
    plan, warnings, scratch, engines = len(built.plan), built.warnings, built.scratch, built.kernels
    del built  # the plan, before the next build
    found = []
    for profile, kernels, memory in zip(job.profiles, engines, scratch, strict=True):
        alone = _compile(job, [at_optimum(profile)])
        found.append(
            ProfileAudit(
                name=profile.name,
                shapes={name: shapes.opt for name, shapes in profile.ranges.items()},
                kernels=len(kernels),
                attention=sum(kernel.attention for kernel in kernels),
                products=sum(kernel.product for kernel in kernels),
                copies=tuple(kernel.name for kernel in kernels if kernel.copy),
                scratch=memory,
                moved=moved(alone.kernels[0]),
                least=least(alone, job),
                largest=largest(alone.kernels[0]),
            )
        )
    return AuditResult(plan, tuple(found), warnings)


def _compile(job: AuditJob, profiles: Sequence[Profile]) -> Compiled:
    return compile_graph(Path(job.onnx), profiles, job.capabilities, job.settings, job.weights)


def at_optimum(profile: Profile) -> Profile:
    """Return the profile with the optimal shapes only."""
    return Profile(profile.name, {name: Range(s.opt, s.opt, s.opt) for name, s in profile.ranges.items()})


def least(built: Compiled, job: AuditJob) -> int | None:
    """Return the bytes of each input, output and weight of a graph compiled for fixed shapes.

    A graph that only gathers rows of its weights reads as many bytes of them as it writes.
    """
    inputs = [size for name, size in built.inputs.items() if not (job.gathered and name in job.weights)]
    outputs = list(built.outputs.values())
    known = [size for size in inputs + outputs * (1 + job.gathered) if size is not None]
    if len(known) < len(inputs) + len(outputs) * (1 + job.gathered):
        return None
    return sum(known) + (0 if job.gathered else built.weights)


def largest(kernels: Sequence[Kernel]) -> tuple[KernelGroup, ...]:
    """Return the kernels that move most bytes; those with the same label are one entry."""
    groups: dict[str, list[int]] = {}
    for kernel in kernels:
        groups.setdefault(kernel.label, []).append(kernel.bytes or 0)
    ordered = sorted(groups.items(), key=lambda item: sum(item[1]), reverse=True)
    return tuple(KernelGroup(label, len(sizes), sum(sizes)) for label, sizes in ordered[:LARGEST])


if __name__ == "__main__":
    sys.exit(serve(AuditJob, audit, Path(sys.argv[1])))
