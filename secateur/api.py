# SPDX-License-Identifier: Apache-2.0
"""Python interface: load a model, calibrate schedules, export a bundle. The commands call the same functions."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur import methods, plugins
from secateur.bundle.atomic import check_folder_free
from secateur.bundle.reader import BUNDLE_FOLDER
from secateur.bundle.schedule import Schedule
from secateur.bundle.schedule_file import read_schedule
from secateur.bundle.strict_json import convert
from secateur.calibration.samples import Sample
from secateur.calibration.schedules import make_schedules
from secateur.errors import BadSchedule, InputError
from secateur.export.bundle import Exported, ExportPlan, check_graphs, check_schedules, export, shared_weight_files
from secateur.export.quantize import quantize_weights
from secateur.export.targets import target as target_of
from secateur.families.base import Family
from secateur.load_model import check_usable
from secateur.load_model import load as load_family
from secateur.methods.base import Method
from secateur.methods.random import Method as Random
from secateur.progress import Progress, silent
from secateur.selection.budget import BudgetRequest


def make_method(name: str, seed: int = 0, **options: Any) -> Method:
    """Return the pruning method `name` with these options; `seed` goes to methods that have one.

    Raises:
        UnknownName: no such method.
        InputError: the method has no such option, or its value is of another type.
        BadSchedule: a value of an option is outside its bounds.
    """
    chosen: type[Method] = plugins.load(methods, name, "method").Method
    known = {field.name for field in dataclasses.fields(chosen)}
    if unknown := sorted(options.keys() - known):
        listed = ", ".join(sorted(known - {"seed"}))
        raise InputError(f"method '{name}' has no option '{unknown[0]}'; options: {listed}")
    if "seed" in known:
        options["seed"] = seed
    return chosen(**_checked(chosen, options, f"method '{name}': "))


def _checked(cls: type, values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Return the values of fields of `cls`, converted to the types of the fields.

    Raises:
        InputError: a value is of another type.
    """
    hints = typing.get_type_hints(cls)
    try:
        return {name: convert(hints[name], value, name) for name, value in values.items()}
    except (TypeError, ValueError) as problem:
        raise InputError(f"{where}{problem}") from None


def load(
    model: str = "demo",
    image_size: tuple[int, int] | None = None,
    images: int = 1,
    system: str = "",
    fit: str | None = None,
    revision: str | None = None,
) -> Family:
    """Load a model in fp32 for one prompt shape. For more image sizes of the same model see `secateur.api.at_sizes`.

    model       "demo", a checkpoint directory or a hub id
    image_size  (height, width) of the images; None: the model's own
    images      images in a prompt
    system      system prompt
    fit         "letterbox", "square", "stretch" or "crop"; None: the model's own way
    revision    branch, tag or commit of a hub id

    Raises:
        InputError: a size or the number of images is below 1.
        BadModel: the model cannot be loaded, or does not take the size.
    """
    return at_sizes(load_family(model, revision=revision), [image_size], images, system, fit)[0]


def at_sizes(
    family: Family,
    sizes: Sequence[tuple[int, int] | None],
    images: int = 1,
    system: str = "",
    fit: str | None = None,
) -> list[Family]:
    """Return the model for each image size (height, width), with shared weights.

    Raises:
        InputError: a size or the number of images is below 1, or a size is given twice.
        BadModel: the model does not take a size, or its processor cannot be used.
    """
    if images < 1:
        raise InputError(f"--images is {images}; it must be at least 1")
    if len(set(sizes)) < len(sizes):
        raise InputError("--image-size names a size twice")
    for size in sizes:
        if size is not None and min(size) < 1:
            raise InputError(f"--image-size {size[1]}x{size[0]} must be at least 1x1")
    found = [family.at(size, images, system, fit) for size in sizes]
    for each in found:
        check_usable(each)
    return found


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Settings of a calibration: one schedule for each method and compression, measured together.

    methods       pruning methods, from `secateur.api.make_method`
    keep          tokens kept by each gate: shares of all tokens (1 is all) or counts
    compressions  average shares pruned; not together with `keep`
    layers        decoder layers with a gate at their entry (None: calibrated)
    name          name of the only schedule (None: METHOD-PERCENT KEPT)
    controls      random choices to add to each schedule, with the same layers and counts
    samples       samples, a folder of images or a .jsonl of image and text (None: generated, for the demo model)
    sample_count  samples to read (None: the default of each method)
    seed          seed of the samples and the controls
    work          folder for the state that a killed calibration resumes from
    compare       compare each schedule with random tokens on a few samples, and warn if it loses

    Raises:
        InputError: a value is outside its bounds, or settings exclude each other.
    """

    methods: Sequence[Method]
    keep: tuple[float, ...] | None = None
    compressions: tuple[float, ...] | None = None
    layers: tuple[int, ...] | None = None
    name: str | None = None
    controls: int = 0
    samples: Path | Sequence[Sample] | None = None
    sample_count: int | None = None
    seed: int = 0
    work: Path | None = None
    compare: bool = True

    def __post_init__(self) -> None:
        if wrong := next((each for each in self.methods if not isinstance(each, Method)), None):
            raise InputError(f"methods has {wrong!r}, which is not a method; use secateur.api.make_method")
        if not isinstance(self.samples, Path | None):
            if other := next((each for each in self.samples if not isinstance(each, Sample)), None):
                raise InputError(f"samples has {other!r}, which is not a Sample; a folder or a .jsonl is a Path")
        _checked(Calibration, {n: getattr(self, n) for n in ("keep", "compressions", "layers", "controls", "seed")})
        names = ",".join(method.name for method in self.methods)
        if not self.methods:
            raise InputError("no method is given; give at least one")
        if self.controls < 0:
            raise InputError(f"--control is {self.controls}; it must be at least 0")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"--seed is {self.seed}; it must be within 0 and {2**32 - 1}")
        if self.keep is not None and self.compressions is not None:
            raise InputError("--keep and --compression both set the budget; give one of them")
        if len(self.methods) > 1 and self.compressions is None and self.keep is None:
            raise InputError(f"--method {names} compares methods at one budget; add --compression or --keep")
        if self.name in ("", "full"):
            raise InputError(f"--name '{self.name}' cannot be used; 'full' is the schedule without gates")
        if self.name and len(self.methods) * len(self.requests) > 1:
            raise InputError(f"--name '{self.name}' names one schedule; give one method and one compression")
        if self.sample_count is not None and self.sample_count < 1:
            raise InputError(f"--sample-count is {self.sample_count}; it must be at least 1")
        if isinstance(self.samples, Sequence) and not self.samples:
            raise InputError("the list of calibration samples is empty; give at least one")
        needed = any(method.statistics or self.compare and method.name != "random" for method in self.methods)
        if self.samples is not None and not needed:
            raise InputError(f"--samples changes nothing: --method {names} measures no pictures; leave it out")

    @property
    def requests(self) -> list[BudgetRequest]:
        """One budget for each compression."""
        return [BudgetRequest(self.keep, compression, self.layers) for compression in self.compressions or (None,)]

    @property
    def count(self) -> int:
        """Number of schedules that `run` returns."""
        return len(self.methods) * len(self.requests) * (1 + self.controls)

    def run(self, family: Family, progress: Progress = silent) -> list[Schedule]:
        """Measure the model once, and return the schedules of all methods and compressions, then the controls.

        Raises:
            InputError: the samples cannot be read.
            BadModel, BadSchedule: a budget cannot be met, a method cannot be exported, or a name occurs twice.
        """
        check_graphs(family, make_schedules(family, [m for m in self.methods if not m.statistics], self.requests))
        how = self.samples, self.sample_count, self.seed, progress, self.work, self.compare
        made = make_schedules(family, self.methods, self.requests, *how)
        if self.name:
            made = [dataclasses.replace(made[0], name=self.name)]
        made += [Random(seed=self.seed + i).like(schedule) for schedule in made for i in range(self.controls)]
        names = [schedule.name for schedule in made]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise BadSchedule(f"two schedules would be called '{twice}'; choose compressions further apart")
        return made


def calibrate(
    model: str | Family = "demo",
    method: str | Method = "btp",
    *,
    compression: float | None = None,
    keep: tuple[float, ...] | None = None,
    layers: tuple[int, ...] | None = None,
    name: str | None = None,
    samples: str | Path | Sequence[Sample] | None = None,
    sample_count: int | None = None,
    seed: int = 0,
    work: Path | None = None,
    compare: bool = True,
    progress: Progress = silent,
    **options: Any,
) -> Schedule:
    """Measure a model and return one schedule; `options` are those of the method, other settings as in `Calibration`.

    For several methods or compressions use `Calibration`, for other prompt shapes give a model from `load`.
    """
    if isinstance(method, Method) and options:
        raise InputError(f"option '{next(iter(options))}' needs the method's name; it is already made")
    chosen = method if isinstance(method, Method) else make_method(method, seed, **options)
    calibration = Calibration(
        methods=[chosen],
        keep=keep,
        compressions=None if compression is None else (compression,),
        layers=layers,
        name=name,
        samples=Path(samples) if isinstance(samples, str) else samples,
        sample_count=sample_count,
        seed=seed,
        work=work,
        compare=compare,
    )
    return calibration.run(load(model) if isinstance(model, str) else model, progress)[0]


def plan_bundle(
    families: Sequence[Family],
    schedules: Sequence[Schedule],
    calibration: Calibration | None = None,
    progress: Progress = silent,
) -> list[ExportPlan]:
    """Assign each schedule to the image size it was made for, then add those of `calibration` to each size.

    Raises:
        BadSchedule: a schedule is of another model or image size.
    """
    plans, known = list[ExportPlan](), [family.identity for family in families]
    for family in families:  # the first family refuses a schedule that fits none
        own = [s for s in schedules if s.model == family.identity or (not plans and s.model not in known)]
        check_schedules(family, own)
        if calibration:
            own += calibration.run(family, progress)
        plans.append(ExportPlan(family, tuple(own)))
    return plans


def export_bundle(
    model: str | Family | Sequence[Family],
    schedules: Schedule | str | Path | Sequence[Schedule | str | Path],
    target: str = "cpu",
    *,
    out: str | Path,
    dtype: str | None = None,
    weights: str | None = None,
    quantize: str | None = None,
    block_size: int | None = None,
    symmetric: bool | None = None,
    accuracy_level: int | None = None,
    share: Path | None = None,
    force: bool = False,
    check: bool = True,
    progress: Progress = silent,
) -> Exported:
    """Write a bundle of schedules, or of their files, to the folder `out`; for errors see `export.bundle.export`.

    A loaded model is converted to the target's dtype: calibrate before. Several families are the model at several image
    sizes, see `secateur.api.at_sizes`. `weights` is "shared" (inputs of the graphs) or "baked" (constants of them).
    """
    kind = target_of(target, dtype, weights)
    how = quantize_weights(quantize, kind, block_size, symmetric, accuracy_level)
    given = [schedules] if isinstance(schedules, Schedule | str | Path) else schedules
    read = [each if isinstance(each, Schedule) else read_schedule(Path(each)) for each in given]
    check_folder_free(Path(out), force, BUNDLE_FOLDER)
    families = [load(model) if isinstance(model, str) else model] if isinstance(model, str | Family) else model
    if not families:
        raise InputError("no model is given; give a name or a model from secateur.load")
    if share:
        shared_weight_files(share, families[0], kind)
    plans = plan_bundle(families, read)
    families[0].to(kind.torch_dtype)
    return export(plans, kind, Path(out), force=force, verify=check, share=share, quantization=how, progress=progress)
