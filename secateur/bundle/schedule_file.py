# SPDX-License-Identifier: Apache-2.0
"""Read and write schedules: NAME.json and, if the method has trained tensors, NAME.safetensors beside it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from secateur.bundle.atomic import check_file_free, write_bytes
from secateur.bundle.regular_file import read_bytes
from secateur.bundle.schedule import Schedule
from secateur.bundle.strict_json import read_json, to_json
from secateur.errors import BadOutput, BadSchedule

WEIGHTS = ".safetensors"
LARGEST_TENSORS = 1 << 30
"""Bytes of the tensors of a schedule."""


def encode(schedule: Schedule) -> dict[str, bytes]:
    """Return file contents by suffix: ".json" and, if the schedule has tensors, ".safetensors"."""
    if not schedule.tensors:
        return {".json": to_json(schedule).encode()}
    tensors = save(dict(schedule.tensors))
    digest = f"sha256:{hashlib.sha256(tensors).hexdigest()}"
    return {".json": to_json(replace(schedule, weights=digest)).encode(), WEIGHTS: tensors}


def check_schedule_free(path: Path, force: bool, weights: bool = False) -> None:
    """Check that a schedule can be written to `path` and, if `weights`, that its tensors can be written beside it.

    Raises:
        BadOutput: see `check_file_free`; or `path` does not end in .json.
    """
    if path.suffix != ".json":
        raise BadOutput(
            f"output {path} must end in .json: the weights of a schedule are written beside it under the same name"
        )
    check_file_free(path, force)
    if weights:
        check_file_free(path.with_suffix(WEIGHTS), force)


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Write `path` and, if the schedule has tensors, the file beside it (tensors first).

    Raises:
        BadOutput: a file cannot be written.
    """
    for suffix, data in reversed(encode(schedule).items()):
        write_bytes(path.with_suffix(suffix), data)


def read_schedule(path: Path) -> Schedule:
    """Read the schedule in the file `path`, with its tensors.

    Raises:
        BadSchedule: a file is missing or damaged, or the two files do not belong together.
    """
    schedule = read_json(Schedule, path, BadSchedule)
    if not schedule.weights:
        return schedule
    beside = path.with_suffix(WEIGHTS)
    try:
        data = read_bytes(beside, LARGEST_TENSORS)
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != schedule.weights:
            raise BadSchedule(f"{beside} is not the file that {path.name} was written with; calibrate again")
        tensors = load(data)
    except KeyError as dtype:
        raise BadSchedule(f"{beside} has tensors of the unknown type {dtype}; calibrate again") from None
    except (OSError, SafetensorError) as problem:
        raise BadSchedule(f"{beside}, the weights of schedule '{schedule.name}', cannot be read: {problem}") from None
    return replace(schedule, tensors=tensors)
