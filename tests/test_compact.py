# SPDX-License-Identifier: Apache-2.0
"""Compact positions in prompts with positions from 1, and in prompts with several position axes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from secateur.errors import BadSchedule
from secateur.export.bundle import ExportPlan, export
from secateur.export.gate_sites import place_gates
from secateur.export.targets import target
from secateur.runtime import Pipeline
from secateur.selection.budget import BudgetRequest
from tests import checks
from tests.conftest import method, schedules, tiny_family

COMPACT = {"compact": method("pdrop", positions="compact")}
TWICE = BudgetRequest(keep=(0.6, 0.3), layers=(1, 3))
"""A budget with two gates, so that positions are renumbered twice."""


def test_compact_positions_from_one_equal_masked(tmp_path: Path) -> None:
    family = tiny_family("paligemma")
    assert family.layout.numbered(1) == [[1]]
    export(
        [ExportPlan(family, tuple(schedules(family, COMPACT, TWICE)))], target("cpu"), tmp_path / "bundle", verify=False
    )
    with Pipeline.load(tmp_path / "bundle") as vlm:
        assert len(vlm.bundle.manifest.schedules["compact"].gates) == 2
        checks.check_pruned(vlm, family, "compact")
        checks.check_decode(vlm, family, "compact")
        checks.check_batch(vlm, family, "compact")


def test_positions_of_several_axes_stay_original() -> None:
    family = tiny_family("qwen2_vl")
    (schedule,) = schedules(family, COMPACT, TWICE)
    place_gates(family, family.layout, replace(schedule, positions="original"))
    with pytest.raises(BadSchedule, match="those of 'qwen2_vl' are not a plain count; use --positions original"):
        place_gates(family, family.layout, schedule)
