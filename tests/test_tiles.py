# SPDX-License-Identifier: Apache-2.0
"""Tiles placed side by side: each has its own quota, although they interleave row by row."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from secateur.bundle.manifest import GateRef
from secateur.bundle.schedule import Gate, Schedule, ViewGate
from secateur.calibration.layer_walk import only, prompts
from secateur.calibration.samples import Sample
from secateur.engines.cases import Case, input_values
from secateur.errors import BadBundle
from secateur.export.bundle import ExportPlan, export
from secateur.export.gates import EncoderGate
from secateur.export.graphs import Graph, build_graphs, sized_model
from secateur.export.interleaved_views import InterleavedGate
from secateur.export.lint import lint
from secateur.export.operators import OLDEST
from secateur.export.targets import target
from secateur.export.to_onnx import to_onnx
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.runtime.receipt import gate_receipt
from secateur.selection.budget import BudgetRequest, budget
from tests import checks
from tests.conftest import method, schedules, tiny_family

Bundle = tuple[Pipeline, Family]
SIZE = (36, 24)
GRIDS = [(3, 3), (3, 2), (3, 3), (3, 2), (3, 3)]
QUOTAS = ([5, 4, 6, 3, 7], [2, 3, 1, 0, 5])
METHODS = {"fopru": method("fopru")}
NAMES = [*METHODS, "both", "routed"]


def unequal(schedule: Schedule) -> Schedule:
    """Change every gate to keep one token more of the last tile, one less of the first."""
    gates = []
    for gate in schedule.gates:
        whole, first, *others, last = gate.parts
        parts = (whole, replace(first, keep=first.keep - 1), *others, replace(last, keep=last.keep + 1))
        gates.append(replace(gate, parts=parts))
    return replace(schedule, gates=tuple(gates))


def by_hand(schedule: Schedule, family: Family, name: str, positions: str, *kinds: tuple[int, str]) -> Schedule:
    """Return a schedule of gates (layer, kind) that keep QUOTAS; random, because graphs with scores export slowly."""
    gates = tuple(
        Gate(layer, sum(kept), kind, parts=tuple(ViewGate(keep, {"seed": keep}) for keep in kept))
        for (layer, kind), kept in zip(kinds, (quotas * family.images for quotas in QUOTAS), strict=True)
    )
    cost = budget(family.dimensions, family.layout.vision_tokens, gates)
    made = replace(schedule, name=name, method="random", positions=positions, gates=gates, budget=cost)
    return replace(made, calibration={}, tensors={}, weights="")


@pytest.fixture(scope="module")
def family() -> Family:
    return tiny_family("llava_next").at(SIZE)


@pytest.fixture(scope="module")
def pruned(family: Family) -> list[Schedule]:
    made = [unequal(s) for s in schedules(family, METHODS, BudgetRequest(compression=0.5))]
    both = by_hand(made[0], family, "both", "compact", (0, "vision"), (2, "prune"))
    return [*made, both, by_hand(made[0], family, "routed", "original", (2, "route"), (3, "route"))]


@pytest.fixture(scope="module")
def tiled(family: Family, pruned: list[Schedule], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bundle]:
    folder = tmp_path_factory.mktemp("tiles") / "tiled"
    export([ExportPlan(family, tuple(pruned))], target("cpu"), folder, verify=False)
    with Pipeline.load(folder) as vlm:
        yield vlm, family


def counts(kept: Iterable[int], family: Family) -> list[int]:
    """Return the number of kept tokens of each view, from their rows."""
    rows = [sorted(row for view in family.layout.views for row in view.rows)[token] for token in kept]
    return [sum(row in view.rows for row in rows) for view in family.layout.views]


def test_tiles_interleave(family: Family) -> None:
    assert [view.grid for view in family.layout.views] == GRIDS
    assert [len(run) for run in family.layout.runs] == [1, 2, 2]


@pytest.mark.parametrize("name", NAMES)
def test_every_tile_has_its_own_quota(tiled: Bundle, pruned: list[Schedule], name: str) -> None:
    checks.check_pruned(*tiled, name)
    checks.check_decode(*tiled, name)
    checks.check_batch(*tiled, name)
    schedule = next(schedule for schedule in pruned if schedule.name == name)
    answer = tiled[0].ask(checks.given(checks.pictures(tiled[1], 1)), "w1", schedule=name, max_new_tokens=1)
    asked = [[part.keep for part in gate.parts] for gate in schedule.gates]
    assert [counts(kept, tiled[1]) for kept in answer.kept] == asked
    assert any(quota[1] != quota[3] for quota in asked)


@pytest.mark.slow
def test_two_images_of_tiles(family: Family, tmp_path: Path) -> None:
    two = family.at(SIZE, images=2)
    made = schedules(two, METHODS, BudgetRequest(compression=0.5))
    both = by_hand(made[0], two, "both", "original", (0, "vision"), (2, "prune"))
    export([ExportPlan(two, (*made, both))], target("cpu"), tmp_path / "two", verify=False)
    with Pipeline.load(tmp_path / "two") as vlm:
        checks.check_full(vlm, two)
        for name in ("fopru", "both"):
            checks.check_pruned(vlm, two, name)
            checks.check_decode(vlm, two, name)
            checks.check_batch(vlm, two, name)
        answer = vlm.ask(checks.given(checks.pictures(two, 1)), "w1", schedule="both", max_new_tokens=1)
        assert [counts(kept, two) for kept in answer.kept] == [quotas * 2 for quotas in QUOTAS]


def test_full_equals_generate(tiled: Bundle) -> None:
    checks.check_full(*tiled)


@pytest.mark.parametrize("name", ["fopru", "both"])
def test_questions_that_share_an_image(tiled: Bundle, name: str) -> None:
    images, questions = checks.given(checks.pictures(tiled[1], 5)), [checks.QUESTION, checks.LONGER]
    together = tiled[0].ask(images, questions, schedule=name, max_new_tokens=3)
    for question, shared in zip(questions, together, strict=True):
        own = tiled[0].ask(images, question, schedule=name, max_new_tokens=3)
        assert (shared.kept, shared.tokens) == (own.kept, own.tokens)
        assert checks.close(shared.first_logits, own.first_logits)


def test_swapped_quotas_of_tiles_are_refused(tiled: Bundle, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiled[0].bundle.root, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    for gate in manifest["schedules"]["fopru"]["gates"]:
        gate["views"][1], gate["views"][3] = gate["views"][3], gate["views"][1]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with Pipeline.load(copy) as vlm, pytest.raises(BadBundle, match="tokens of the views, the schedule asks for"):
        vlm.ask(checks.given(checks.pictures(tiled[1], 1)), "w1", schedule="fopru", max_new_tokens=1)


def test_a_receipt_counts_the_tokens_of_each_tile(family: Family) -> None:
    layout = family.layout
    every = np.arange(layout.vision_tokens)[None]
    kept = np.sort(np.concatenate([own[:keep] for own, keep in zip(layout.members, QUOTAS[0], strict=True)]))[None]
    ref = GateRef(0, "gate", 25, "vision", tuple(QUOTAS[0]))
    assert gate_receipt(ref, every, kept, layout).applied == 25
    with pytest.raises(BadBundle, match=r"kept \(5, 4, 6, 3, 7\) tokens of the views, the schedule asks for"):
        gate_receipt(replace(ref, views=(5, 6, 4, 3, 7)), every, kept, layout)


@pytest.mark.parametrize(("gate", "quotas"), [("both.0", None), ("both.1", QUOTAS[0]), ("routed.1", QUOTAS[0])])
def test_a_gate_is_timed_on_tokens_of_every_tile(tiled: Bundle, gate: str, quotas: list[int] | None) -> None:
    manifest = tiled[0].bundle.manifest
    tokens = [view.tokens for view in manifest.layout.views] if quotas is None else quotas
    shapes = {
        spec.name: tuple(d if isinstance(d, int) else 1 if d == "B" else 60 for d in spec.shape)
        for spec in manifest.graph(gate).inputs
    }
    (index,) = input_values(manifest, Case(gate, gate, "prefill", 0, shapes, ()))["vision_index"]
    assert (np.diff(index) > 0).all() and counts(index, tiled[1]) == tokens


def test_calibration_sees_a_tile_alone(family: Family) -> None:
    """The text before the tiles, the tile's rows in order, and the question."""
    sample = next(iter(prompts(family, [Sample(checks.picture(0), "w1 w2")])))
    view = family.layout.views[2]
    rows = [*range(family.layout.image_start), *view.rows, *range(family.layout.rows, sample.rows.shape[1])]
    assert only(sample.rows, family.layout, view).equal(sample.rows[:, rows])
    alone = family.layout.alone(view)
    assert alone.numbered(alone.rows) == [rows[: alone.rows]] and alone.views[0].stride == 0


@pytest.mark.parametrize("name", NAMES)
def test_gates_pass_the_lint(family: Family, pruned: list[Schedule], name: str, tmp_path: Path) -> None:
    """The last gate of a schedule, whose row order depends on data unless it is the only gate."""
    where, kind = tmp_path / "gate.onnx", target("tensorrt")
    chosen = [schedule for schedule in pruned if schedule.name == name]
    graphs = build_graphs([sized_model(family, family.layout, chosen)], kind)
    gate = [graph for graph in graphs if _is_gate(graph)][-1]
    assert isinstance(gate.module, InterleavedGate)
    to_onnx(gate, where, kind.opset)
    assert lint(where, OLDEST) == ()


def test_tiles_in_one_column_are_not_reordered() -> None:
    family = tiny_family("llava_next").at((54, 18))
    (schedule,) = schedules(family, {"fopru": METHODS["fopru"]}, BudgetRequest(compression=0.5))
    gates = [
        graph
        for graph in build_graphs([sized_model(family, family.layout, [schedule])], target("cpu"))
        if _is_gate(graph)
    ]
    assert gates and all(type(gate.module) is EncoderGate for gate in gates)


def _is_gate(graph: Graph) -> bool:
    return graph.spec.kind == "gate"


@pytest.mark.parametrize("name", ["vtw", "fopru"])
def test_a_gate_that_keeps_no_tile(family: Family, tmp_path: Path, name: str) -> None:
    """ONNX cannot reshape an empty tensor to a dynamic batch size, in the decoder or in the encoder."""
    made = schedules(family, {name: method(name)}, BudgetRequest(keep=(0.0,)))
    (gate,) = [
        g for g in build_graphs([sized_model(family, family.layout, made)], target("cpu")) if g.spec.kind == "gate"
    ]
    to_onnx(gate, tmp_path / "gate.onnx", target("cpu").opset)
    session = onnxruntime.InferenceSession(tmp_path / "gate.onnx")
    given = {spec.name: rows.numpy() for spec, rows in zip(gate.spec.inputs, gate.example(), strict=True)}
    for found, expected in zip(session.run(None, given), gate.module(*gate.example()), strict=True):
        np.testing.assert_array_equal(found, expected.numpy())
