# SPDX-License-Identifier: Apache-2.0
"""Schedules on disk: NAME.json and, when the method has trained something, NAME.safetensors beside it."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load, save

from secateur.artifacts import Schedule, read_json, to_json
from secateur.errors import BadSchedule
from secateur.files import write_bytes


def encode(schedule: Schedule) -> dict[str, bytes]:
    """File contents by suffix: ".json" and, if the schedule has tensors, ".safetensors"."""
    if not schedule.tensors:
        return {".json": to_json(schedule).encode()}
    tensors = save(dict(schedule.tensors))
    digest = f"sha256:{hashlib.sha256(tensors).hexdigest()}"
    return {".json": to_json(replace(schedule, weights=digest)).encode(), ".safetensors": tensors}


def write_schedule(schedule: Schedule, path: Path) -> None:
    """Write `path` and, if the schedule has tensors, the file beside it; the tensors first.

    Raises:
        BadOutput: a file cannot be written.
    """
    for suffix, data in reversed(encode(schedule).items()):
        write_bytes(path.with_suffix(suffix), data)


def read_schedule(path: Path) -> Schedule:
    """The schedule in the file `path`, with its tensors.

    Raises:
        BadSchedule: a file is missing, damaged, or the two do not belong together.
    """
    schedule = read_json(Schedule, path, BadSchedule)
    if not schedule.weights:
        return schedule
    beside = path.with_suffix(".safetensors")
    try:
        data = beside.read_bytes()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != schedule.weights:
            raise BadSchedule(f"{beside} is not the file that {path.name} was written with; calibrate again")
        return replace(schedule, tensors=load(data))
    except (OSError, SafetensorError) as problem:
        raise BadSchedule(f"{beside}, the weights of schedule '{schedule.name}', cannot be read: {problem}") from None
