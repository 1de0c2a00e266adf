# SPDX-License-Identifier: Apache-2.0
"""Schedules and a model become a bundle: graphs, prompt, tokenizer, manifest, checked, in one folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from secateur import __version__
from secateur.artifacts import FULL, Manifest, Schedule, ScheduleRef, to_json
from secateur.calibration.budget import budget
from secateur.calibration.files import encode
from secateur.engines.manifest import ENGINES
from secateur.engines.version import FLOORS
from secateur.errors import BadSchedule, ExportMismatch, Unparsable
from secateur.export.folder import atomic_folder
from secateur.export.graphs import build
from secateur.export.lint import lint
from secateur.export.parity import Parity, check
from secateur.export.targets import Target
from secateur.export.to_onnx import to_onnx
from secateur.models.base import Family
from secateur.progress import Progress, silent
from secateur.runtime.bundle import MANIFEST, Bundle, sha256

PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class Exported:
    """What an export leaves: the bundle's manifest and the worst error of each graph and schedule (empty: no check)."""

    manifest: Manifest
    parity: tuple[Parity, ...]


def export(
    family: Family,
    schedules: Sequence[Schedule],
    target: Target,
    out: Path,
    *,
    force: bool = False,
    verify: bool = True,
    progress: Progress = silent,
) -> Exported:
    """Write the bundle of `family` with the schedule "full" and `schedules` to the folder `out`.

    progress is told (stage, graph, steps done, steps in all).

    Raises:
        BadSchedule: a schedule of another model, or a name used twice.
        BadOutput: `out` exists (without force) or cannot be written.
        Unparsable: the target is for TensorRT, and a graph needs what its oldest version does not take.
        ExportMismatch: with verify, a graph or the chain differs from torch; nothing is left behind.
    """
    _check_schedules(family, schedules)
    graphs, gates = build(family, schedules, target)
    with atomic_folder(out, force, MANIFEST, keep=ENGINES) as folder:  # plans whose graph is the same stay good
        for done, graph in enumerate(graphs):
            progress("export", graph.spec.name, done, len(graphs))
            to_onnx(graph, folder / graph.spec.file, target.opset)
            _check_operators(folder / graph.spec.file, target)
        progress("export", "", len(graphs), len(graphs))
        (folder / "schedules").mkdir()
        everything = (full(family), *schedules)
        for schedule in everything:
            for suffix, data in encode(schedule).items():
                (folder / _file(schedule.name)).with_suffix(suffix).write_bytes(data)
        family.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "prompt.json").write_text(to_json(family.prompt))
        (folder / "preprocess.json").write_text(to_json(family.preprocess))
        manifest = Manifest(
            model=family.identity,
            source=family.source,
            target=target.name,
            dtype=target.dtype,
            opset=target.opset,
            dimensions=family.dimensions,
            layout=family.layout,
            graphs=tuple(graph.spec for graph in graphs),
            schedules={s.name: ScheduleRef(_file(s.name), tuple(gates[s.name]), s.positions) for s in everything},
            files=_hashes(folder),
            versions={"secateur": __version__} | {name: importlib.metadata.version(name) for name in PACKAGES},
        )
        (folder / MANIFEST).write_text(to_json(manifest))
        parity = check(Bundle.load(folder), family, progress) if verify else ()
        failed = [p for p in parity if not p.passed]
        if failed:
            raise ExportMismatch(
                f"{len(failed)} of {len(parity)} checks fail; worst: {failed[0].name}, error {failed[0].error:.2e} "
                f"over {failed[0].tolerance:.0e}; nothing was written (--no-check exports anyway)"
            )
    return Exported(manifest, parity)


def full(family: Family) -> Schedule:
    """The schedule without gates, which every bundle holds."""
    return Schedule(FULL, FULL, family.identity, (), budget(family.dimensions, family.layout.vision_tokens, ()))


def _check_operators(path: Path, target: Target) -> None:
    """Refuse a graph that TensorRT would refuse, on this machine and at once."""
    floor = FLOORS.get(target.name)
    findings = lint(path, floor) if floor is not None else ()
    if findings:
        others = f" ({len(findings) - 1} more in this graph)" if len(findings) > 1 else ""
        raise Unparsable(f"TensorRT {floor} would not take it: {findings[0]}{others}")


def _check_schedules(family: Family, schedules: Sequence[Schedule]) -> None:
    names = [FULL]
    for schedule in schedules:
        if schedule.model != family.identity:
            raise BadSchedule(
                f"schedule '{schedule.name}' was made for another model ({schedule.model.family}, "
                f"{schedule.model.layers} layers, {schedule.model.fingerprint[:19]}), not for '{family.source}' "
                f"({family.identity.fingerprint[:19]}); calibrate it again"
            )
        if schedule.budget != budget(family.dimensions, family.layout.vision_tokens, schedule.gates):
            raise BadSchedule(f"the budget of schedule '{schedule.name}' is not that of its gates; calibrate it again")
        if schedule.name in names:
            raise BadSchedule(f"two schedules are called '{schedule.name}'; rename one")
        names.append(schedule.name)


def _file(name: str) -> str:
    return f"schedules/{name}.json"


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}
