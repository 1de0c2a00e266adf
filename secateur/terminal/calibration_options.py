# SPDX-License-Identifier: Apache-2.0
"""Options that calibrate and export share: the model, the method with its own flags, the budget, the samples."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import BadSchedule, InputError
from secateur.progress import Progress

if TYPE_CHECKING:
    from secateur.bundle.schedule import Schedule
    from secateur.families.base import Family
    from secateur.methods.base import Method
    from secateur.selection.budget import BudgetRequest
    from secateur.selection.statistics import Statistics

METHOD = "btp"
ALL = "all"
WORK = Path("build/calibration")


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Add the shared options, and the fields of the method that `argv` names as flags of their own."""
    parser.add_argument("--model", default="demo", help="demo, a checkpoint directory or a hub id (default: demo)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id (default: main)")
    shape = parser.add_argument_group("prompt")
    shape.add_argument(
        "--image-size", type=sizes, help="WIDTHxHEIGHT of the images, several as a,b (default: the model's own)"
    )
    shape.add_argument("--images", type=int, default=1, help="images in a prompt (default: 1)")
    shape.add_argument("--system", default="", help="system prompt")
    shape.add_argument("--fit", help="letterbox, stretch or crop an image to the size (default: the model's own way)")
    parser.add_argument("--method", default=None, help=f"pruning method, several as a,b, or all (default: {METHOD})")
    budget = parser.add_argument_group("budget")
    budget.add_argument(
        "--keep", type=numbers, help="tokens kept by each gate: shares (1 is all) or counts: 0.5,0.25,0.125"
    )
    budget.add_argument("--compression", type=numbers, help="average share pruned; several make several schedules")
    budget.add_argument("--layers", type=integers, help="decoder layers whose entry gets a gate (default: calibrated)")
    budget.add_argument("--name", help="name of the schedule (default: METHOD-PERCENT KEPT)")
    budget.add_argument(
        "--control",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="add N random choices (default: 1) with the same layers and counts",
    )
    data = parser.add_argument_group("calibration")
    data.add_argument("--samples", type=Path, help="folder of images, or .jsonl of image and text (default: generated)")
    data.add_argument("--sample-count", type=int, help="samples to use (default: what the method asks for)")
    data.add_argument("--seed", type=int, default=0, help="of every random choice (default: 0)")
    data.add_argument(
        "--work", type=Path, default=WORK, help=f"what a killed calibration goes on from (default: {WORK})"
    )

    peek = type(parser)(add_help=False, allow_abbrev=False)
    peek.add_argument("--method", default=METHOD)
    named = method_classes(peek.parse_known_args(argv)[0].method)
    if len(named) > 1:  # each with its defaults
        return
    ((name, method),) = named.items()
    group = parser.add_argument_group(f"options of {name}")
    hints = typing.get_type_hints(method)
    for field in dataclasses.fields(method):
        if field.name != "seed":  # one --seed for the samples and for the method
            _add_field(group, field, hints[field.name])


def method_classes(text: str | None) -> dict[str, type[Method]]:
    """The methods that --method names, by name: one, several as "a,b", or all.

    Raises:
        UnknownName, InputError: there is no such method, or one is named twice.
    """
    from secateur import methods, plugins

    names = plugins.names(methods) if text == ALL else (METHOD if text is None else text).split(",")
    if len(set(names)) < len(names):
        raise InputError(f"--method {text} names a method twice")
    return {name: plugins.load(methods, name, "method").Method for name in names}


def _add_field(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """One dataclass field as a flag; unset flags stay out of the namespace, so the dataclass keeps its default."""
    flag = "--" + field.name.replace("_", "-")
    note = field.metadata.get("help", "")
    if field.default is not None:
        note = f"{note} (default: {field.default})".strip()
    kinds = [k for k in typing.get_args(hint) if k is not type(None)] if _is_optional(hint) else [hint]
    kind = kinds[0]
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=note)
    elif typing.get_origin(kind) is typing.Literal:
        group.add_argument(flag, choices=typing.get_args(kind), default=argparse.SUPPRESS, help=note)
    else:
        convert: Callable[[str], Any] = kind
        if typing.get_origin(kind) is tuple:
            convert = integers if typing.get_args(kind)[0] is int else numbers
        group.add_argument(flag, type=convert, default=argparse.SUPPRESS, help=note)


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def numbers(text: str) -> tuple[float, ...]:
    """ "0.5,0.25" -> (0.5, 0.25)"""
    return tuple(float(part) for part in text.split(","))


def integers(text: str) -> tuple[int, ...]:
    """ "3,6,14" -> (3, 6, 14)"""
    return tuple(int(part) for part in text.split(","))


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """ "448x336,672x448" -> ((336, 448), (448, 672)), as (height, width)"""
    parts = [
        re.fullmatch(r"(-?\d{1,9})x(-?\d{1,9})", part.strip(), re.ASCII | re.IGNORECASE) for part in text.split(",")
    ]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; give WIDTHxHEIGHT, as 448x336, several as a,b")
    return tuple((int(part[2]), int(part[1])) for part in parts if part)


def families(arguments: argparse.Namespace, family: Family) -> list[Family]:
    """The model seen through each image size that the user asked for.

    Raises:
        InputError: a size or the number of images is below 1, or a size is named twice.
        BadModel: the model does not take a size, or its processor cannot be used.
    """
    from secateur.load_model import check_usable

    if arguments.images < 1:
        raise InputError(f"--images is {arguments.images}; it must be at least 1")
    asked = arguments.image_size or (None,)
    if len(set(asked)) < len(asked):
        raise InputError("--image-size names a size twice")
    for size in asked:
        if size is not None and min(size) < 1:
            raise InputError(f"--image-size {size[1]}x{size[0]} must be at least 1x1")
    seen = [family.at(size, arguments.images, arguments.system, arguments.fit) for size in asked]
    for each in seen:
        check_usable(each)
    return seen


def requests(arguments: argparse.Namespace) -> list[BudgetRequest]:
    """One request per schedule that the budget options ask for."""
    from secateur.selection.budget import BudgetRequest

    if arguments.control < 0:
        raise InputError(f"--control is {arguments.control}; it must be at least 0")
    if not 0 <= arguments.seed < 2**32:
        raise InputError(f"--seed is {arguments.seed}; it must be within 0 and {2**32 - 1}")
    if arguments.keep is not None and arguments.compression is not None:
        raise InputError("--keep and --compression both set the budget; give one of them")
    several = len(method_classes(arguments.method)) > 1
    if several and arguments.compression is None and arguments.keep is None:
        raise InputError(f"--method {arguments.method} compares methods at one budget; add --compression or --keep")
    compressions = arguments.compression or (None,)
    if arguments.name in ("", "full"):
        raise InputError(f"--name '{arguments.name}' cannot be used; 'full' is the schedule without gates")
    if arguments.name and (several or len(compressions) > 1):
        raise InputError(f"--name '{arguments.name}' names one schedule; give one method and one compression")
    return [BudgetRequest(arguments.keep, compression, arguments.layers) for compression in compressions]


def number(arguments: argparse.Namespace) -> int:
    """How many schedules `make_schedules` makes."""
    controls: int = arguments.control
    return len(method_classes(arguments.method)) * len(requests(arguments)) * (1 + controls)


def make_schedules(arguments: argparse.Namespace, family: Family, progress: Progress) -> list[Schedule]:
    """Measure the model once and let each method make one schedule per request, with its control if asked."""
    from secateur.calibration.schedules import calibrate
    from secateur.methods.random import Method as Random

    classes = method_classes(arguments.method)
    chosen = [
        cls(**{n: getattr(arguments, n) for n in _fields(cls) if hasattr(arguments, n)}) for cls in classes.values()
    ]
    asked = requests(arguments)
    statistics = _measure(arguments, family, chosen, progress)
    made = [
        calibrate(method, family, measured, request)
        for method, measured in zip(chosen, statistics, strict=True)
        for request in asked
    ]
    if arguments.name:
        made = [dataclasses.replace(made[0], name=arguments.name)]
    seeds = range(arguments.seed, arguments.seed + arguments.control)
    made += [Random(seed=seed).like(schedule) for schedule in made for seed in seeds]
    names = [schedule.name for schedule in made]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadSchedule(f"two schedules would be called '{twice}'; ask for compressions further apart")
    return made


def _measure(
    arguments: argparse.Namespace,
    family: Family,
    chosen: list[Method],
    progress: Progress,
) -> list[list[Statistics]]:
    """Statistics for each method. Those that ask for as many samples share a run; what they get is the same alone."""
    from secateur.calibration.samples import samples
    from secateur.calibration.schedules import measure

    asked = arguments.sample_count
    if asked is not None and asked < 1:
        raise InputError(f"--sample-count is {asked}; it must be at least 1")
    if arguments.samples is not None and not any(method.statistics for method in chosen):
        raise InputError(f"--samples changes nothing: --method {arguments.method} measures no pictures; leave it out")
    counts = [method.samples if asked is None else asked for method in chosen]
    measured = {}
    for count in sorted(set(counts)):
        wanted = frozenset[str]().union(*(m.statistics for m, n in zip(chosen, counts, strict=True) if n == count))
        data = samples(arguments.model, arguments.samples, count, arguments.seed) if wanted else []
        measured[count] = measure(family, data, wanted, arguments.seed, progress, arguments.work)
    return [measured[count] for count in counts]


def _fields(cls: type[Method]) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def given(arguments: argparse.Namespace) -> list[str]:
    """Flags in `arguments` that only matter when a schedule is made."""
    own = {name for cls in method_classes(arguments.method).values() for name in _fields(cls) if name != "seed"}
    shared = ("keep", "compression", "layers", "name", "control", "samples", "sample_count")
    set_flags = [name for name in shared if getattr(arguments, name) not in (None, 0)] + [
        n for n in own if hasattr(arguments, n)
    ]
    return sorted("--" + name.replace("_", "-") for name in set_flags)


def summaries(sizes: Sequence[Sequence[Schedule]]) -> dict[str, Any]:
    """A summary of each schedule by its name; where there are several image sizes, by its name and size."""
    several = len(sizes) > 1
    every = [schedule for schedules in sizes for schedule in schedules]
    return {f"{s.name} {s.model.image_size}" if several else s.name: summary(s) for s in every}


def summary(schedule: Schedule) -> dict[str, Any]:
    """What a user wants to see of a schedule."""
    return {
        "method": schedule.method,
        "positions": schedule.positions,
        "gates": [{"layer": g.layer, "kind": g.kind, "keep": g.keep} for g in schedule.gates],
        "budget": dataclasses.asdict(schedule.budget),
    }
