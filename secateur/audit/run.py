# SPDX-License-Identifier: Apache-2.0
"""Audits the graphs of a bundle, each in a new process."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from secateur.audit.memory import device_memory
from secateur.audit.results import Audit, GraphAudit
from secateur.audit.worker import AuditJob, AuditResult
from secateur.bundle.atomic import write_text
from secateur.bundle.manifest import GraphSpec
from secateur.bundle.reader import Bundle
from secateur.bundle.strict_json import read_json, to_json
from secateur.engines.library import TensorRTForRTX
from secateur.engines.manifest import BuilderSettings, Limits, Profile
from secateur.errors import BadEngine
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
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        onnx, answer = bundle.path(graph.file).resolve(), folder / "result.json"
        job = AuditJob(
            str(onnx),
            str(answer),
            profiles,
            capabilities,
            settings,
            tuple(weight.name for weight in graph.weights),
            graph.kind == "embed",
        )
        write_text(folder / "job.json", to_json(job))
        command = [sys.executable, "-m", "secateur.audit.worker", str(folder / "job.json")]
        with (folder / "log").open("wb") as log:
            code = subprocess.run(command, stdout=log, stderr=log).returncode
        if answer.exists():
            result = read_json(AuditResult, answer, BadEngine)
        else:
            said = (folder / "log").read_text(errors="replace").strip().splitlines()
            ended = f"signal {-code}" if code < 0 else f"exit code {code}"
            result = AuditResult(error=f"the compiler ended with {ended}{': ' + said[-1] if said else ''}")
    first, last = graph.layers or (0, 0)
    return GraphAudit(
        graph.name,
        graph.kind,
        last - first if graph.kind == "segment" else 0,
        result.plan,
        result.profiles,
        result.warnings,
        result.error,
    )
