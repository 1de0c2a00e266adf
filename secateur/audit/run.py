# SPDX-License-Identifier: Apache-2.0
"""Audits the graphs of a bundle, each in a new process."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateur.audit import worker
from secateur.audit.memory import device_memory
from secateur.audit.results import Audit, GraphAudit
from secateur.audit.worker import AuditJob, AuditResult
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle
from secateur.engines.jobs import JobFailed, run_job
from secateur.engines.library import TensorRTForRTX
from secateur.engines.manifest import BuilderSettings, Limits, Profile
from secateur.progress import Progress, silent


def audit(
    bundle: Bundle,
    graphs: Sequence[str],
    profiles: Mapping[str, tuple[Profile, ...]],
    capabilities: tuple[str, ...],
    settings: BuilderSettings,
    limits: Limits,
    schedule: str,
    command: str = "",
    progress: Progress = silent,
) -> Audit:
    """Compile these graphs of a bundle. A graph that cannot be compiled is reported, and the others go on.

    profiles  of each graph by name
    limits    of the engines, for the KV cache
    schedule  whose row counts are the optimum of the profiles
    command   for the report

    Raises:
        BackendMissing: TensorRT for RTX is not installed.
    """
    library = TensorRTForRTX()
    manifest = bundle.manifest
    found = []
    for done, name in enumerate(graphs):
        progress("audit", name, done, len(graphs))
        found.append(_audit(bundle, manifest.graph(name), profiles[name], capabilities, settings))
    progress("audit", "", len(graphs), len(graphs))
    complete = len(graphs) == len(manifest.graphs) and not any(graph.error for graph in found)
    return Audit(
        bundle=bundle.root.resolve().name,
        model=manifest.source,
        target=manifest.target,
        dtype=str(manifest.quantization) if manifest.quantization else manifest.dtype,
        schedule=schedule,
        compiler=f"{library.title} {library.version}",
        capabilities=capabilities,
        command=command,
        graphs=tuple(found),
        memory=device_memory(bundle, limits, found) if complete else None,
    )


def _audit(
    bundle: Bundle,
    graph: GraphSpec,
    profiles: tuple[Profile, ...],
    capabilities: tuple[str, ...],
    settings: BuilderSettings,
) -> GraphAudit:
    job = AuditJob(
        str(bundle.path(graph.file).resolve()),
        profiles,
        capabilities,
        settings,
        tuple(weight.name for weight in graph.weights),
        graph.kind == "embed",
    )
    result, error = AuditResult(0, (), ()), ""
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = run_job(worker.__name__, job, AuditResult, Path(folder) / "log")
        except JobFailed as problem:
            error = str(problem)
    first, last = graph.layers or (0, 0)
    return GraphAudit(
        graph.name,
        graph.kind,
        last - first if graph.kind == "segment" else 0,
        result.plan,
        result.profiles,
        result.warnings,
        error,
    )
