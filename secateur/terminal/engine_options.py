# SPDX-License-Identifier: Apache-2.0
"""Engine options, shared by `build`, `audit` and `profile --trtexec`, which are about the same engines."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from secateur.engines.manifest import BuilderSettings, Limits
    from secateur.engines.trtexec import Recipe
    from secateur.runtime import Bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    room = parser.add_argument_group("limits of the engines")
    room.add_argument("--schedule", help="schedule to optimize engines for (default: the one of median rows)")
    room.add_argument("--max-batch", type=int, default=1, help="most samples at once; optimized for 1 (default: 1)")
    room.add_argument("--max-text", type=int, help="most rows of a question with its template (default: 256)")
    room.add_argument("--max-new-tokens", type=int, help="most rows of an answer (default: 128)")
    room.add_argument("--masked-past", action="store_true", help="start with one masked row in the KV cache")
    builder = parser.add_argument_group("builder")
    builder.add_argument("--workspace", type=int, default=2048, metavar="MIB", help="scratch memory (default: 2048)")
    builder.add_argument("--optimization-level", type=int, default=3, help="0 (fast build) to 5 (default: 3)")
    builder.add_argument("--max-aux-streams", type=int, default=0, help="streams besides the main one (default: 0)")


def changed_flags(arguments: argparse.Namespace) -> list[str]:
    """Return the flags whose values differ from the defaults."""
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    defaults = vars(parser.parse_args([]))
    return [f"--{name.replace('_', '-')}" for name in defaults if getattr(arguments, name) != defaults[name]]


def options(arguments: argparse.Namespace, bundle: Bundle) -> tuple[Limits, str, int, BuilderSettings]:
    """Return limits, the schedule to optimize for, masked rows of the first past, and settings of the builder.

    Raises:
        InputError: a number is out of bounds; the message names the flag.
        UnknownName: the bundle has no such schedule.
    """
    from secateur.bundle.graph_plan import usual_schedule
    from secateur.engines.manifest import BuilderSettings
    from secateur.engines.shapes import check_text, limits

    manifest = bundle.manifest
    settings = BuilderSettings(arguments.workspace, arguments.optimization_level, arguments.max_aux_streams)
    room = limits(manifest, arguments.max_batch, arguments.max_text, arguments.max_new_tokens)
    check_text(bundle, room)
    return room, usual_schedule(manifest, arguments.schedule), int(arguments.masked_past), settings


def recipe(arguments: argparse.Namespace, bundle: Bundle, schedules: Sequence[str], folder: Path) -> Recipe:
    """Return the trtexec commands that build the graphs of these schedules and time them, in `folder`.

    Each plan equals that of a build of the whole bundle: its profiles cover every schedule.

    Raises:
        BadBundle: the bundle was not exported for TensorRT.
        InputError, UnknownName: as `options`.
    """
    from secateur.engines.shapes import cases, profiles
    from secateur.engines.trtexec import Recipe
    from secateur.engines.version import check_target

    manifest = bundle.manifest
    check_target(manifest)
    room, usual, past, settings = options(arguments, bundle)
    shapes = profiles(manifest, room, usual, past)
    part = replace(
        manifest,
        schedules={name: manifest.schedules[name] for name in schedules},
        others=tuple(replace(o, schedules={name: o.schedules[name] for name in schedules}) for o in manifest.others),
    )
    timed = cases(part, room, past)
    run = {case.graph for case in timed}
    part = replace(part, graphs=tuple(graph for graph in manifest.graphs if graph.name in run))
    return Recipe(part, shapes, timed, settings, folder, bundle.root)
