# SPDX-License-Identifier: Apache-2.0
"""The constants of a gate, read strictly from the `selector` block of a schedule file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from secateur.bundle.strict_json import Json, decode
from secateur.errors import BadSchedule

T = TypeVar("T")


@dataclass(frozen=True)
class NoConstants:
    """Constants of a gate that has none."""


def parameters(cls: type[T], selector: Json, method: str) -> T:
    """Read the `selector` block as the dataclass `cls`, which checks its own values.

    Raises:
        BadSchedule: a constant is missing, unknown, of another type or out of its bounds.
    """
    try:
        return decode(cls, dict(selector))
    except (TypeError, ValueError) as problem:
        raise BadSchedule(f"selector of a {method} gate: {problem}") from None


def one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    """Check that a value is one of `values`.

    Raises:
        BadSchedule: it is not; the message names the allowed values.
    """
    if value not in values:
        raise BadSchedule(f"{name} '{value}' is not known; use one of {', '.join(values)}")
