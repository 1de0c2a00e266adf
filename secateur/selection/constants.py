# SPDX-License-Identifier: Apache-2.0
"""Constants of a gate, read strictly from the `selector` block of a schedule file, and those of several methods."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import TypeVar

from secateur.bundle.strict_json import Json, decode
from secateur.errors import BadSchedule
from secateur.selection.selector import GateSite

T = TypeVar("T")


@dataclass(frozen=True)
class NoConstants:
    """Constants of a gate that has none."""


def parameters(cls: type[T], selector: Json, method: str) -> T:
    """Read the `selector` block as the dataclass `cls`, which checks its own values.

    Raises:
        BadSchedule: a constant is missing, unknown, of another type or out of its bounds.
    """
    known = {constant.name: constant for constant in fields(cls)}  # type: ignore[arg-type]
    where = f"selector of a {method} gate"
    for name in selector:
        if name not in known:
            mend = f"use {', '.join(known)}" if known else "leave it out"
            raise BadSchedule(f"{where}: unknown constant '{name}'; {mend}")
    for name, constant in known.items():
        if name not in selector and constant.default is MISSING:
            raise BadSchedule(f"{where}: the constant '{name}' is missing; calibrate the schedule again")
    try:
        return decode(cls, dict(selector))
    except (TypeError, ValueError) as problem:
        raise BadSchedule(f"{where}: {problem}") from None


def one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    """Check that a value is one of `values`.

    Raises:
        BadSchedule: it is not; the message names the allowed values.
    """
    if value not in values:
        raise BadSchedule(f"{name} '{value}' is not known; use one of {', '.join(values)}")


@dataclass(frozen=True)
class EncoderScore:
    """Constants of one gate.

    score        attention that a patch gets from the "class_token", or "received" from all patches
    score_layer  encoder layer, from the end: -1 is the last
    """

    score: str = "class_token"
    score_layer: int = -2

    def __post_init__(self) -> None:
        one_of("score", self.score, ("class_token", "received"))
        check_layer(self.score_layer)

    def name(self, site: GateSite) -> str:
        """Return the name of the tensor that the gate reads, such as "class_token.-2".

        Raises:
            BadSchedule: the encoder has no class token to score by.
        """
        if self.score == "class_token" and not site.dimensions.class_token:
            raise BadSchedule(
                f"a {site.method} gate scores by the class token, which this encoder does not have; calibrate again"
            )
        return f"{self.score}.{self.score_layer}"


def check_layer(layer: int) -> None:
    """Check that an encoder layer is counted from the end.

    Raises:
        BadSchedule: it is 0 or more.
    """
    if layer >= 0:
        raise BadSchedule(f"score_layer {layer} must be below 0: layers count from the end, -1 is the last")
