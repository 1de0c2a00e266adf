# SPDX-License-Identifier: Apache-2.0
"""Every family against transformers with one method; test_matrix.py (slow) has all methods, and two images."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from secateur import families, plugins
from secateur.selection.budget import BudgetRequest
from tests import checks
from tests.conftest import COMPRESSION, METHODS, tiny_family
from tests.family_cases import Case, case

KINDS = [name for name in ("btp",) if name in METHODS]
TWO_GATES = BudgetRequest(compression=COMPRESSION, layers=(1, 3))
"""The first by diversity, the last by attention; a graph takes seconds to trace."""


@pytest.fixture(scope="module", params=plugins.names(families))
def one(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    found = case(tiny_family(request.param), KINDS, tmp_path_factory.mktemp("families") / request.param, TWO_GATES)
    with found.vlm:
        yield found


@pytest.fixture(scope="module", params=plugins.names(families))
def two(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    """Two images in a prompt."""
    family = tiny_family(request.param).at(images=2)
    found = case(family, KINDS, tmp_path_factory.mktemp("families") / f"{request.param}-two", TWO_GATES)
    with found.vlm:
        yield found


def test_full_equals_generate(one: Case) -> None:
    checks.check_full(one.vlm, one.family)


@pytest.mark.parametrize("name", KINDS)
def test_pruned_equals_masked(one: Case, name: str) -> None:
    checks.check_pruned(one.vlm, one.family, one.has(name))
    checks.check_decode(one.vlm, one.family, name)


@pytest.mark.parametrize("name", [*KINDS, "full"])
def test_follow_up_equals_one_long_conversation(one: Case, name: str) -> None:
    checks.check_follow_up(one.vlm, one.family, one.has(name))


@pytest.mark.parametrize("name", [*KINDS, "full"])
def test_a_batch_equals_single_runs(one: Case, name: str) -> None:
    checks.check_batch(one.vlm, one.family, one.has(name))


@pytest.mark.slow
def test_two_images_equal_generate(two: Case) -> None:
    checks.check_full(two.vlm, two.family)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_two_images_pruned_equal_masked(two: Case, name: str) -> None:
    """Every image keeps its own quota."""
    checks.check_pruned(two.vlm, two.family, two.has(name))
    checks.check_decode(two.vlm, two.family, name)
    checks.check_batch(two.vlm, two.family, name)
    answer = two.vlm.ask(checks.given(checks.pictures(two.family, 1)), "w1", schedule=name, max_new_tokens=1)
    tokens = two.family.layout.image_tokens
    for kept in answer.kept:
        assert sum(index < tokens for index in kept) * 2 == len(kept)
