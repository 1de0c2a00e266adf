# SPDX-License-Identifier: Apache-2.0
"""Base class of pruning methods: options, calibration, and the choice of the vision tokens to keep.

A method sees tensors, neither ONNX nor model families. Gathering rows, positions, masks and indices is done once
for all methods in export/gates.py.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from secateur.bundle.schedule import Array, Gate, Schedule
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.selection.budget import BudgetRequest, budget, schedule_name
from secateur.selection.constants import NoConstants, parameters
from secateur.selection.selector import Fixed, GateSite, Selector
from secateur.selection.statistics import Statistics


@dataclass(frozen=True)
class Method(ABC):
    """Base class of all methods; the fields of a subclass are its options and become command-line flags."""

    statistics: ClassVar[frozenset[str]] = frozenset()
    """Fields of `Statistics` that calibration must measure. Empty: the model is not run."""

    constants: ClassVar[type] = NoConstants
    """Frozen dataclass of the constants in a gate's `selector` block; it checks its own values."""

    samples: ClassVar[int] = 64
    """Default number of calibration samples."""

    positions: Literal["original", "compact"] = field(
        default="original",
        kw_only=True,
        metadata={"help": "kept tokens keep their positions, or all rows after a gate are renumbered"},
    )

    @property
    def name(self) -> str:
        """Return the method's name, which is its file's name."""
        return _name(type(self))

    @abstractmethod
    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Return the schedule of this method for the measured model.

        Raises:
            BadSchedule: the request cannot be met; the message names the bound.
        """

    def check(self, statistics: Statistics, request: BudgetRequest) -> None:
        """Check, before anything is measured, that the request can be met; `statistics` has no measurements.

        By default the method is calibrated on nothing; override it if a measurement can decide otherwise.

        Raises:
            BadSchedule: the request cannot be met, whatever is measured.
        """
        self.calibrate(statistics, request)

    @classmethod
    def choose(cls, site: GateSite) -> Selector:
        """Return the module of one gate: a constant if it keeps all tokens or none, else the method's `selector`.

        Raises:
            BadSchedule: the gate cannot keep so many tokens, or a constant is missing, unknown or out of bounds.
        """
        keep, tokens = site.gate.keep, site.vision_tokens
        if not 0 <= keep <= tokens:
            raise BadSchedule(
                f"keep {keep} of the gate at layer {site.gate.layer} must be within 0 and {tokens}, "
                "the tokens alive there"
            )
        if keep in (0, tokens):
            return Fixed(range(keep))
        site = dataclasses.replace(site, method=_name(cls))
        return cls.selector(site, parameters(cls.constants, site.gate.selector, site.method))

    @classmethod
    @abstractmethod
    def selector(cls, site: GateSite, constants: Any) -> Selector:
        """Return the module that chooses the tokens of a gate that keeps some but not all.

        Args:
            site: the gate and its position.
            constants: the gate's `selector` block, read as `cls.constants`.

        Raises:
            BadSchedule: a constant does not fit the site.
        """

    def refuse(self, names: Sequence[str], when: str) -> None:
        """Check that the options `names`, which have no effect in the case described by `when`, keep their defaults.

        Raises:
            BadSchedule: one of them was changed.
        """
        for option in dataclasses.fields(self):
            value = getattr(self, option.name)
            if option.name in names and value != option.default:
                raise BadSchedule(f"{option.name} {value} changes nothing {when}; leave it out")

    def schedule(
        self,
        statistics: Statistics,
        gates: Sequence[Gate],
        calibration: Json | None = None,
        tensors: Mapping[str, Array] | None = None,
    ) -> Schedule:
        """Return the schedule of these gates, with its name and its cost."""
        model, gates = statistics.model, tuple(gates)
        cost = budget(statistics.dimensions, model.vision_tokens, gates)
        return Schedule(
            name=schedule_name(self.name, cost),
            method=self.name,
            model=model,
            gates=gates,
            budget=cost,
            positions=self.positions,
            calibration=calibration or {},
            tensors=tensors or {},
        )


def _name(method: type[Method]) -> str:
    return method.__module__.rpartition(".")[2]
