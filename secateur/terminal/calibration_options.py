# SPDX-License-Identifier: Apache-2.0
"""Options shared by calibrate and export: model, method with its own flags, budget, samples."""

from __future__ import annotations

import argparse
import dataclasses
import re
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from secateur.errors import InputError

if TYPE_CHECKING:
    from secateur.api import Calibration
    from secateur.bundle.schedule import Schedule
    from secateur.families.base import Family
    from secateur.methods.base import Method

METHOD = "btp"
ALL = "all"
WORK = Path("build/calibration")


def add_arguments(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Add the shared options, and one flag for each field of the method named in `argv`."""
    parser.add_argument("--model", default="demo", help="demo, a checkpoint directory or a hub id (default: demo)")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id (default: main)")
    shape = parser.add_argument_group("prompt")
    shape.add_argument("--image-size", type=sizes, help="WIDTHxHEIGHT, several as a,b (default: the model's own size)")
    shape.add_argument("--images", type=int, default=1, help="images in a prompt (default: 1)")
    shape.add_argument("--system", default="", help="system prompt")
    shape.add_argument("--fit", help="letterbox, square, stretch or crop (default: as the model does)")
    parser.add_argument("--method", default=None, help=f"pruning method, several as a,b, or all (default: {METHOD})")
    budget = parser.add_argument_group("budget")
    budget.add_argument("--keep", type=numbers, help="tokens kept by each gate: shares (1 is all) or counts, as a,b")
    budget.add_argument("--compression", type=numbers, help="mean share pruned per layer; a,b makes two schedules")
    budget.add_argument("--layers", type=integers, help="decoder layers with a gate at the input (default: calibrated)")
    budget.add_argument("--name", help="name of the schedule (default: METHOD-PERCENTAGE KEPT)")
    budget.add_argument(
        "--control",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="add N schedules of random tokens (default: 1) with the same layers and counts",
    )
    data = parser.add_argument_group("calibration")
    data.add_argument("--samples", type=Path, help="folder of images, or .jsonl of image and text (default: generated)")
    data.add_argument("--sample-count", type=int, help="number of samples (default: the method's)")
    data.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: 0)")
    data.add_argument("--no-compare", action="store_true", help="do not compare the schedules with random tokens")
    data.add_argument("--work", type=Path, default=WORK, help=f"state of a killed calibration (default: {WORK})")

    peek = type(parser)(add_help=False, allow_abbrev=False)
    peek.add_argument("--method", default=METHOD)
    named = method_classes(peek.parse_known_args(argv)[0].method)
    if len(named) > 1:  # each method has its defaults
        return
    ((name, method),) = named.items()
    group = parser.add_argument_group(f"options of {name}")
    hints = typing.get_type_hints(method)
    for field in dataclasses.fields(method):
        if field.name != "seed":  # --seed serves both the samples and the method
            _add_field(group, field, hints[field.name])


def method_classes(text: str | None) -> dict[str, type[Method]]:
    """Return the methods of --method by name: one, several as "a,b", or all.

    Raises:
        UnknownName, InputError: a method does not exist, or is given twice.
    """
    from secateur import methods, plugins

    names = plugins.names(methods) if text == ALL else (METHOD if text is None else text).split(",")
    if len(set(names)) < len(names):
        raise InputError(f"--method {text} has a method twice")
    return {name: plugins.load(methods, name, "method").Method for name in names}


def _add_field(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    """Add a flag for a dataclass field. An unset flag is not in the namespace, so the default of the field applies."""
    flag = "--" + field.name.replace("_", "-")
    note = field.metadata.get("help", "")
    if field.default is not None:
        note = f"{note} (default: {field.default})".strip()
    optional = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kind = next(k for k in typing.get_args(hint) if k is not type(None)) if optional else hint
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=note)
    elif typing.get_origin(kind) is typing.Literal:
        group.add_argument(flag, choices=typing.get_args(kind), default=argparse.SUPPRESS, help=note)
    else:
        convert: Callable[[str], Any] = kind
        if typing.get_origin(kind) is tuple:
            convert = integers if typing.get_args(kind)[0] is int else numbers
        group.add_argument(flag, type=convert, default=argparse.SUPPRESS, help=note)


def numbers(text: str) -> tuple[float, ...]:
    """Parse numbers: "0.5,0.25" -> (0.5, 0.25)."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number, nor several as a,b") from None


def integers(text: str) -> tuple[int, ...]:
    """Parse integers: "3,6,14" -> (3, 6, 14)."""
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not an integer, nor several as a,b") from None


def sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse WIDTHxHEIGHT into (height, width): "448x336,672x448" -> ((336, 448), (448, 672))."""
    parts = [
        re.fullmatch(r"(-?\d{1,9})x(-?\d{1,9})", part.strip(), re.ASCII | re.IGNORECASE) for part in text.split(",")
    ]
    if not all(parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; give WIDTHxHEIGHT, such as 448x336, several as a,b")
    return tuple((int(part[2]), int(part[1])) for part in parts if part)


def families(arguments: argparse.Namespace, family: Family) -> list[Family]:
    """Return the model for each image size of --image-size; see `api.at_sizes`."""
    from secateur.api import at_sizes

    return at_sizes(family, arguments.image_size or (None,), arguments.images, arguments.system, arguments.fit)


def calibration(arguments: argparse.Namespace) -> Calibration:
    """Return the calibration that the options describe; see `api.Calibration`."""
    from secateur.api import Calibration, make_method

    classes = method_classes(arguments.method)
    return Calibration(
        methods=[
            make_method(
                name,
                arguments.seed,
                **{n: getattr(arguments, n) for n in _fields(cls) if hasattr(arguments, n)},
            )
            for name, cls in classes.items()
        ],
        keep=arguments.keep,
        compressions=arguments.compression,
        layers=arguments.layers,
        name=arguments.name,
        controls=arguments.control,
        samples=arguments.samples,
        sample_count=arguments.sample_count,
        seed=arguments.seed,
        work=arguments.work,
        compare=not arguments.no_compare,
    )


def _fields(cls: type[Method]) -> list[str]:
    """Return the fields of a method except `seed`, which has a shared flag."""
    return [field.name for field in dataclasses.fields(cls) if field.name != "seed"]


def given_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the given flags that only affect calibration."""
    own = {name for cls in method_classes(arguments.method).values() for name in _fields(cls)}
    shared = ("keep", "compression", "layers", "name", "control", "samples", "sample_count", "no_compare")
    found = [n for n in shared if getattr(arguments, n) not in (None, 0)] + [n for n in own if hasattr(arguments, n)]
    return sorted("--" + name.replace("_", "-") for name in found)


def summaries(sizes: Sequence[Sequence[Schedule]]) -> dict[str, Any]:
    """Return the summary of each schedule by name, with the image size if there are several."""
    several = len(sizes) > 1
    every = [schedule for schedules in sizes for schedule in schedules]
    return {f"{s.name} {s.model.image_size}" if several else s.name: summary(s) for s in every}


def summary(schedule: Schedule) -> dict[str, Any]:
    """Return the main properties of a schedule."""
    return {
        "method": schedule.method,
        "positions": schedule.positions,
        "gates": [{"layer": g.layer, "kind": g.kind, "keep": g.keep} for g in schedule.gates],
        "budget": dataclasses.asdict(schedule.budget),
    }
