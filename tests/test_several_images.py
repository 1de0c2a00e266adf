# SPDX-License-Identifier: Apache-2.0
"""Two images in a prompt: questions that share them, and quotas that differ between them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from secateur.bundle.schedule import Gate, Schedule, ViewGate
from secateur.errors import BadBundle, BadSchedule
from secateur.export.bundle import ExportPlan, export
from secateur.export.gate_sites import place_gates
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.selection.budget import BudgetRequest
from tests import checks
from tests.conftest import method, schedules

Bundle = tuple[Pipeline, Family]


def unequal(schedule: Schedule, more: int) -> Schedule:
    """Change every gate to keep `more` more tokens of the first image, and `more` fewer of the second."""
    gates = []
    for gate in schedule.gates:
        first, second = gate.parts
        parts = (replace(first, keep=first.keep + more), replace(second, keep=second.keep - more))
        gates.append(Gate(gate.layer, gate.keep, gate.kind, parts=parts))
    return replace(schedule, gates=tuple(gates))


@pytest.fixture(scope="module")
def family(tiny: Family) -> Family:
    return tiny.at(images=2)


@pytest.fixture(scope="module")
def pruned(family: Family) -> list[Schedule]:
    return schedules(family, {name: method(name) for name in ("fastv", "visionzip")}, BudgetRequest(compression=0.5))


@pytest.fixture(scope="module")
def two(family: Family, pruned: list[Schedule], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("several") / "two"
    export([ExportPlan(family, (unequal(pruned[0], 3), pruned[1]))], target("cpu"), folder, verify=False)
    with Pipeline.load(folder) as vlm:
        yield vlm, family


def counts(kept: tuple[int, ...], family: Family) -> tuple[int, int]:
    first = sum(index < family.layout.image_tokens for index in kept)
    return first, len(kept) - first


def test_every_image_has_its_own_quota(two: Bundle, pruned: list[Schedule]) -> None:
    checks.check_pruned(*two, "fastv")
    checks.check_decode(*two, "fastv")
    checks.check_batch(*two, "fastv")
    answer = two[0].ask(checks.given(checks.pictures(two[1], 1)), "w1", schedule="fastv", max_new_tokens=1)
    asked = [tuple(part.keep for part in gate.parts) for gate in unequal(pruned[0], 3).gates]
    assert [counts(kept, two[1]) for kept in answer.kept] == asked and asked[0][0] == asked[0][1] + 6


def test_swapped_quotas_in_a_manifest_are_refused(two: Bundle, tmp_path: Path) -> None:
    """The quotas are constants of the graphs, so a manifest with other quotas is refused."""
    copy = Path(shutil.copytree(two[0].bundle.root, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for gate in manifest["schedules"]["fastv"]["gates"]:
        gate["views"].reverse()
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with Pipeline.load(copy) as vlm, pytest.raises(BadBundle, match="tokens of the views, the schedule asks for"):
        vlm.ask(checks.given(checks.pictures(two[1], 1)), "w1", schedule="fastv", max_new_tokens=1)


@pytest.mark.parametrize("name", ["full", "fastv", "visionzip"])
def test_questions_that_share_their_images(two: Bundle, name: str) -> None:
    """The images are encoded once, and every answer equals that of a question with its own images."""
    images, questions = checks.given(checks.pictures(two[1], 5)), [checks.QUESTION, checks.LONGER, "w2"]
    together = two[0].ask(images, questions, schedule=name, max_new_tokens=4)
    each = two[0].ask([images] * len(questions), questions, schedule=name, max_new_tokens=4)
    for shared, own in zip(together, each, strict=True):
        assert (shared.kept, shared.tokens) == (own.kept, own.tokens)
        assert checks.close(shared.first_logits, own.first_logits)


def test_a_gate_in_the_encoder_is_the_same_for_all_images(family: Family, pruned: list[Schedule]) -> None:
    place_gates(family, family.layout, pruned[1])
    for schedule in (unequal(pruned[1], 1), _other_selector(pruned[1])):
        with pytest.raises(BadSchedule, match="the 'vision' gate differs between the 2 images, but one graph serves"):
            place_gates(family, family.layout, schedule)


def _other_selector(schedule: Schedule) -> Schedule:
    gate, second = schedule.gates[0], schedule.gates[0].parts[1]
    parts = (gate.parts[0], ViewGate(second.keep, second.selector | {"other": 1}, second.tensors))
    return replace(schedule, gates=(replace(gate, parts=parts),))
