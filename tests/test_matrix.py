# SPDX-License-Identifier: Apache-2.0
"""Checks of every method on every family; matrix.py writes the results to docs/matrix.md."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from secateur import families, plugins
from secateur.bundle.schedule import Schedule
from secateur.errors import BadModel, BadSchedule
from secateur.export.graphs import Graph, build_graphs, sized_model
from secateur.export.targets import target
from tests import checks, matrix
from tests.conftest import METHODS, method, schedules, tiny_family
from tests.family_cases import HALF, Case, case
from tests.matrix import FOUND
from tests.model_fixtures.compiled import compiled

Check = Callable[[Case, str], str | None]
"""Returns None, or the reason of a refusal; raises AssertionError on failure."""
CHECKS: dict[str, Check] = {
    "parity": lambda found, name: checks.check_parity(found.exported, name),
    "pruned": lambda found, name: checks.check_pruned(found.vlm, found.family, name),
    "decode": lambda found, name: checks.check_decode(found.vlm, found.family, name),
    "follow-up": lambda found, name: checks.check_follow_up(found.vlm, found.family, name),
    "batch": lambda found, name: checks.check_batch(found.vlm, found.family, name),
}
SEVERAL = ("pruned", "decode", "batch")


@pytest.mark.slow
@pytest.mark.parametrize("family", plugins.names(families))
def test_every_method(family: str, tmp_path: Path) -> None:
    """Every check passes or is refused."""
    one = case(tiny_family(family), METHODS, tmp_path / "one")
    two = case(tiny_family(family).at(images=2), METHODS, tmp_path / "two")
    with one.vlm, two.vlm:
        checks.check_full(one.vlm, one.family)
        checks.check_full(two.vlm, two.family)
        found = {name: _results(one, two, name) for name in METHODS}
    FOUND.mkdir(parents=True, exist_ok=True)
    (FOUND / f"{family}.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    wrong = [f"{name}, {what}: {why}" for name, each in found.items() for what, why in each.items() if why[0] == "f"]
    assert not wrong, "\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("family", plugins.names(families))
def test_every_method_is_compiled(family: str, tmp_path: Path) -> None:
    """TensorRT's compiler takes all segments and gates, fuses attention and copies no weight."""
    pytest.importorskip("tensorrt_rtx")
    tiny, made = tiny_family(family), list[Schedule]()
    for name in METHODS:
        with suppress(BadModel, BadSchedule):
            (schedule,) = schedules(tiny, {name: method(name)}, HALF)
            build_graphs([sized_model(tiny, tiny.layout, [schedule])], target("tensorrt"))
            made.append(schedule)
    assert compiled(tiny, made, target("tensorrt"), tmp_path, segments_and_gates)


def segments_and_gates(graphs: Sequence[Graph]) -> list[Graph]:
    return [graph for graph in graphs if graph.spec.kind in ("segment", "gate")]


def _results(one: Case, two: Case, name: str) -> dict[str, str]:
    results = {what: _result(one, name, [check]) for what, check in CHECKS.items()}
    return results | {"two images": _result(two, name, [CHECKS[what] for what in SEVERAL])}


def _result(found: Case, name: str, made: list[Check]) -> str:
    if name in found.refused:
        return f"refused: {found.refused[name]}"
    try:
        for check in made:
            if reason := check(found, name):
                return f"refused: {reason}"
    except AssertionError as problem:
        return f"failed: {str(problem).partition(chr(10))[0]}"
    return "passed"


def test_the_page_counts_what_was_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matrix, "FOUND", tmp_path)
    alone = {"pruned": "passed", "follow-up": "refused: it takes one question"}
    found = {"btp": alone, "cls": alone, "vtw": {"pruned": "failed: x", "follow-up": "refused: y"}}
    never = {"pruned": "refused: no class token", "follow-up": "refused: no class token"}
    (tmp_path / "one.json").write_text(json.dumps(found))
    (tmp_path / "two.json").write_text(json.dumps({"btp": {"pruned": "passed", "follow-up": "passed"}, "cls": never}))
    page = matrix.page()
    assert "4 checks passed, 5 were refused with the reason, 1 failed." in page
    assert "| btp | 1/1, 1 refused | 2/2 |" in page and "| cls | 1/1, 1 refused | refused |" in page
    assert "| vtw | 0/1, 1 refused |  |" in page
    assert "- `one`, follow-up: `btp`, `cls`: it takes one question\n- `one`, follow-up: `vtw`: y\n" in page
    assert "- `two`: `cls`: no class token\n" in page
