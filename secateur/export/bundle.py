# SPDX-License-Identifier: Apache-2.0
"""Export a model and its schedules as a bundle: graphs, prompt, tokenizer and manifest in one folder, checked."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from secateur.bundle.atomic import atomic_folder
from secateur.bundle.layout import VISION, ModelIdentity
from secateur.bundle.manifest import Bucket, GraphSpec, Manifest, Quantization, ScheduleRef
from secateur.bundle.reader import BUNDLE_FOLDER, MANIFEST, Bundle, sha256
from secateur.bundle.schedule import FULL, Schedule
from secateur.bundle.schedule_file import encode
from secateur.bundle.strict_json import to_json
from secateur.engines.version import TARGET as TENSORRT
from secateur.engines.version import floor
from secateur.errors import BadBundle, BadSchedule, ExportMismatch, Unparsable
from secateur.export.diagnosis import diagnose
from secateur.export.first_maximum import replace_single_topk
from secateur.export.fused_attention import attention_warnings
from secateur.export.graphs import Graph, SizedModel, build_graphs, sized_model
from secateur.export.lint import lint
from secateur.export.model_card import CARD, Figures, card
from secateur.export.parity import Parity, check
from secateur.export.quantized_graph import check_blocks, quantize_graph, quantized_parameters
from secateur.export.targets import SHARED, Target
from secateur.export.targets import target as target_of
from secateur.export.to_onnx import to_onnx
from secateur.export.weights import WeightStore, model_parts
from secateur.families.base import Family
from secateur.machine import package_version
from secateur.progress import Progress, silent
from secateur.selection.budget import budget
from secateur.version import __version__

ONNX = "onnx"
"""Folder of graphs and weights."""
PACKAGES = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime")
WEIGHT_ORDER = ("secateur", "transformers")
"""Packages whose version may change the order of the weights in their files."""
IDENTITY = {
    "family": "family",
    "fingerprint": "weights",
    "layers": "layers",
    "image_size": "image size",
    "images": "images",
    "vision_tokens": "vision tokens",
}
"""Fields that a schedule and the model must share, and their names in messages."""


@dataclass(frozen=True)
class ExportPlan:
    """One image size of a bundle: the model at that size, and the schedules for it."""

    family: Family
    schedules: tuple[Schedule, ...]


@dataclass(frozen=True)
class Exported:
    """Result of an export.

    parity    worst error of each graph and schedule; empty without the check
    seconds   export time of each graph, including the weights that it is the first to use
    warnings  what will make the bundle slow, and settings of the checkpoint that it does not follow
    """

    manifest: Manifest
    parity: tuple[Parity, ...]
    seconds: dict[str, float]
    warnings: tuple[str, ...] = ()


def export(
    plans: Sequence[ExportPlan],
    target: Target,
    out: Path,
    *,
    force: bool = False,
    verify: bool = True,
    share: Path | None = None,
    quantization: Quantization | None = None,
    progress: Progress = silent,
) -> Exported:
    """Write a bundle to the folder `out`, with the schedule "full" and those of the plan for each image size.

    share         another bundle of the same model and dtype, whose weight files are linked instead of written
    quantization  how decoder weights are stored, if not in the target's dtype
    progress      called with (stage, graph, steps done, steps in all)

    Raises:
        BadSchedule: a schedule of another model, or a name used twice.
        BadBundle: `share` is no bundle, or one of another model, dtype or version.
        BadOutput: `out` exists (without force) or cannot be written.
        Unparsable: the target is for TensorRT, and its oldest version does not support an operator of a graph.
        ExportMismatch: with verify, a graph or the chain differs from torch; no bundle is written.
    """
    target = target.storing(quantization)
    buckets = list[SizedModel]()
    _check_names(plans)
    for plan in plans:
        check_schedules(plan.family, plan.schedules)
        layout = plan.family.layout
        layout = replace(layout, vision=f"{VISION}-{layout.size}") if buckets else layout
        buckets.append(sized_model(plan.family, layout, plan.schedules))
    family, graphs = plans[0].family, build_graphs(buckets, target)
    check_blocks(family.decoder.layers, quantization)
    shared = shared_weight_files(share, family, target) if share else {}
    with atomic_folder(out, force, BUNDLE_FOLDER) as folder:
        layers = family.decoder.layers if quantization else ()
        quantized, inputs = quantized_parameters(layers), target.weights == SHARED
        store = WeightStore(folder / ONNX, model_parts(family), shared, progress, quantized, inputs)
        specs, seconds = _write_graphs(folder, graphs, target, store, quantization, progress)
        family.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
        (folder / "prompt.json").write_text(to_json(family.prompt))
        written = [_write_schedules(folder, bucket, plan) for bucket, plan in zip(buckets, plans, strict=True)]
        manifest = Manifest(
            model=family.identity,
            source=family.source,
            target=target.name,
            dtype=target.dtype,
            opset=target.opset,
            dimensions=family.dimensions,
            layout=buckets[0].layout,
            graphs=specs,
            schedules=written[0].schedules,
            files=_hashes(folder),
            versions=versions(),
            others=tuple(written[1:]),
            quantization=quantization,
        )
        (folder / MANIFEST).write_text(to_json(manifest))
        made = Bundle.load(folder)
        parity = check(made, family, progress) if verify else ()
        if not all(each.passed for each in parity):
            raise ExportMismatch(f"{diagnose(made, family, parity)}; nothing was written")
        warnings = (*attention_warnings(folder, manifest), *family.generation[1])
        schedules = [[full(plan.family), *plan.schedules] for plan in plans]
        text = card(manifest, schedules, Figures.of(folder, manifest, parity))
        (folder / CARD).write_text(text, encoding="utf-8")  # not in the manifest: the owner may edit it
    return Exported(manifest, parity, seconds, warnings)


def _write_graphs(
    folder: Path,
    graphs: Sequence[Graph],
    target: Target,
    store: WeightStore,
    quantization: Quantization | None,
    progress: Progress,
) -> tuple[tuple[GraphSpec, ...], dict[str, float]]:
    """Write all graphs and their weights; returns their specs, and the seconds of each graph."""
    specs, seconds = list[GraphSpec](), dict[str, float]()
    quantize = partial(quantize_graph, how=quantization) if quantization else None
    for done, graph in enumerate(graphs):
        progress("export", graph.spec.name, done, len(graphs))
        start = time.perf_counter()
        picks = replace_single_topk if target.name == TENSORRT else None
        change = {"segment": quantize, "gate": picks}.get(graph.spec.kind)
        weights = to_onnx(graph, folder / graph.spec.file, target.opset, store, change)
        placed = tuple(replace(weight, file=f"{ONNX}/{weight.file}") for weight in weights)
        specs.append(replace(graph.spec, weights=placed))
        _check_operators(folder / graph.spec.file, target)
        seconds[graph.spec.name] = round(time.perf_counter() - start, 1)
    progress("export", "", len(graphs), len(graphs))
    return tuple(specs), seconds


def _check_operators(path: Path, target: Target) -> None:
    """Check that the oldest TensorRT version of the target supports the graph; TensorRT is not needed for this."""
    oldest = floor(target.name, target.opset)
    findings = lint(path, oldest) if oldest is not None else ()
    if findings:
        others = f" ({len(findings) - 1} more in this graph)" if len(findings) > 1 else ""
        raise Unparsable(f"TensorRT {oldest} does not support a graph of the bundle: {findings[0]}{others}")


def _write_schedules(folder: Path, bucket: SizedModel, plan: ExportPlan) -> Bucket:
    """Write the schedules and the preprocessing of one image size."""
    layout, refs = bucket.layout, {}
    (folder / layout.preprocess).write_text(to_json(bucket.family.preprocess))
    (folder / "schedules").mkdir(exist_ok=True)
    suffix = "" if layout.vision == VISION else f"@{layout.size}"
    for schedule in (full(bucket.family), *plan.schedules):
        file = f"schedules/{schedule.name}{suffix}.json"
        for ending, data in encode(schedule).items():
            (folder / file).with_suffix(ending).write_bytes(data)
        gates = tuple(placed.ref for placed in bucket.gates.get(schedule.name, ()))
        refs[schedule.name] = ScheduleRef(file, gates, schedule.positions)
    return Bucket(layout, refs)


def full(family: Family) -> Schedule:
    """Return the schedule without gates, which every bundle contains."""
    return Schedule(FULL, FULL, family.identity, (), budget(family.dimensions, family.layout.vision_tokens, ()))


def versions() -> dict[str, str]:
    """Return the versions of this package and of the packages that the bytes of a bundle depend on."""
    return {"secateur": __version__} | {name: package_version(name) for name in PACKAGES}


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): sha256(p) for p in files}


def shared_weight_files(bundle: Path, family: Family, target: Target) -> dict[Path, str]:
    """Return the weight files of a bundle of this model and dtype, with their hashes.

    Public, so that a command can check `bundle` before a long calibration.

    Raises:
        BadBundle: no bundle, or one of another model, dtype, or version that may have ordered weights differently.
    """
    other = Bundle.load(bundle, verify=False)
    manifest = other.manifest
    if (manifest.model.fingerprint, manifest.dtype) != (family.fingerprint, target.dtype):
        raise BadBundle(
            f"{bundle} has the weights of another model or dtype ({manifest.source}, {manifest.dtype}), not of "
            f"'{family.source}' in {target.dtype}; leave --share out"
        )
    if bool(manifest.weights) != (target.weights == SHARED):
        raise BadBundle(
            f"{bundle} was exported with {'shared' if manifest.weights else 'baked'} weights, which are stored in "
            f"another order than {target.weights} ones; leave --share out"
        )
    theirs, ours = ([f"{name} {found.get(name)}" for name in WEIGHT_ORDER] for found in (manifest.versions, versions()))
    if theirs != ours:
        raise BadBundle(
            f"{bundle} was written by {' and '.join(theirs)}, this is {' and '.join(ours)}, which may order weights "
            "differently; export it again, or leave --share out"
        )
    return {other.path(name): digest for name, digest in manifest.files.items() if name.endswith(".data")}


def _check_names(plans: Sequence[ExportPlan]) -> None:
    """Check that every schedule exists for every image size, because the runtime chooses the size."""
    for plan in plans[1:]:
        names, others = ({s.name for s in each.schedules} for each in (plans[0], plan))
        for name in sorted(names ^ others):
            size = (plan if name in names else plans[0]).family.layout.size
            raise BadSchedule(f"schedule '{name}' is missing for image size {size}; calibrate it")


def check_schedules(family: Family, schedules: Sequence[Schedule]) -> None:
    """Check that schedules were made for this model, and that each has its own name.

    Public, so that a command can check schedules before a long calibration.

    Raises:
        BadSchedule: a schedule of another model, with a wrong budget, or with a name used twice.
    """
    names = [FULL]
    for schedule in schedules:
        if schedule.model != family.identity:
            raise BadSchedule(
                f"schedule '{schedule.name}' does not fit '{family.source}': it was made for "
                f"{_differences(schedule.model, family.identity)}; calibrate it again"
            )
        if schedule.budget != budget(family.dimensions, family.layout.vision_tokens, schedule.gates):
            raise BadSchedule(f"the budget of schedule '{schedule.name}' is not that of its gates; calibrate it again")
        if schedule.name in names:
            raise BadSchedule(f"two schedules are called '{schedule.name}'; rename one")
        names.append(schedule.name)


def check_graphs(family: Family, schedules: Sequence[Schedule]) -> None:
    """Check, before a long calibration, that each schedule can be exported; nothing is traced.

    Raises:
        BadModel, BadSchedule: the vision encoder cannot compute what a gate reads, or cannot take a smaller image.
    """
    for schedule in schedules:
        build_graphs([sized_model(family, family.layout, [schedule])], target_of("cpu"))


def _differences(made: ModelIdentity, wanted: ModelIdentity) -> str:
    """Describe the differences between two models or prompts."""
    pairs = ((what, str(getattr(made, name)), str(getattr(wanted, name))) for name, what in IDENTITY.items())
    return ", ".join(f"{what} {mine[:19]} instead of {theirs[:19]}" for what, mine, theirs in pairs if mine != theirs)
