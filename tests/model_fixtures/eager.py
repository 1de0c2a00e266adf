# SPDX-License-Identifier: Apache-2.0
"""A pipeline that runs a model in torch, without exported graphs: only the files that the runtime reads are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from secateur.bundle.manifest import Manifest
from secateur.bundle.prompt import Prompt
from secateur.bundle.reader import Bundle
from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import read_json, to_json
from secateur.errors import BadBundle
from secateur.export.bundle import ExportPlan, _write_schedules
from secateur.export.graphs import build_graphs, sized_model
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.runtime.backends.torch import Backend


def eager(family: Family, folder: Path, schedules: Sequence[Schedule] = ()) -> Pipeline:
    """Return the pipeline; the prompt is written to a file and read again."""
    folder.mkdir(exist_ok=True)
    bucket = sized_model(family, family.layout, schedules)
    graphs = build_graphs([bucket], target("cpu"))
    family.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "prompt.json").write_text(to_json(family.prompt))
    written = _write_schedules(folder, bucket, ExportPlan(family, tuple(schedules)))
    manifest = Manifest(
        model=family.identity,
        source=family.source,
        target="cpu",
        dtype="fp32",
        opset=23,
        dimensions=family.dimensions,
        layout=bucket.layout,
        graphs=tuple(graph.spec for graph in graphs),
        schedules=written.schedules,
        files={p.relative_to(folder).as_posix(): "" for p in folder.rglob("*.json")},
        versions={},
    )
    bundle = Bundle(folder, manifest, read_json(Prompt, folder / "prompt.json", BadBundle), (family.preprocess,))
    return Pipeline(bundle, Backend(bundle, family=family))
