# SPDX-License-Identifier: Apache-2.0
"""Bundles of any family, with a schedule of every method that supports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from secateur.bundle.schedule import Schedule
from secateur.errors import BadModel, BadSchedule
from secateur.export.bundle import Exported, ExportPlan, export
from secateur.export.graphs import build_graphs, sized_model
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.selection.budget import BudgetRequest
from tests.conftest import COMPRESSION, method, schedules


@dataclass(frozen=True)
class Case:
    """A model, the results of its export, its open bundle, and the reason for each refused method."""

    family: Family
    exported: Exported
    vlm: Pipeline
    refused: dict[str, str]

    def has(self, name: str) -> str:
        """Return `name` if the bundle has this schedule; else skip the test with the reason."""
        if name in self.refused:
            pytest.skip(f"refused: {self.refused[name]}")
        return name


HALF = BudgetRequest(compression=COMPRESSION)


def case(family: Family, names: Sequence[str], folder: Path, request: BudgetRequest = HALF) -> Case:
    """Export `family` with the methods `names`, and check the bundle against torch."""
    made, refused = list[Schedule](), dict[str, str]()
    for name in names:
        try:
            (schedule,) = schedules(family, {name: method(name)}, request)
            build_graphs([sized_model(family, family.layout, [schedule])], target("cpu"))
            made.append(schedule)
        except (BadModel, BadSchedule) as problem:
            refused[name] = str(problem)
    exported = export([ExportPlan(family, tuple(made))], target("cpu"), folder)
    return Case(family, exported, Pipeline.load(folder), refused)
