# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur import methods, plugins
from secateur.bundle.layout import ModelIdentity
from secateur.bundle.schedule import Budget, Gate, Schedule
from secateur.evaluation.compare import mcnemar, nearest_downsample, right, sign_test, split
from secateur.evaluation.results import CONTROLS, DOWNSAMPLE, SplitPart


@given(st.integers(0, 60), st.integers(0, 60))
def test_sign_test_equals_its_definition(one: int, other: int) -> None:
    n = one + other
    tail = sum(math.comb(n, i) for i in range(min(one, other) + 1))
    assert sign_test(one, other) == pytest.approx(float(min(Fraction(1), Fraction(2 * tail, 2**n))), rel=1e-12)
    assert sign_test(one, other) == sign_test(other, one)


def test_sign_test_of_known_and_of_large_counts() -> None:
    assert sign_test(0, 0) == 1 and sign_test(5, 5) == 1
    assert sign_test(1, 9) == pytest.approx(22 / 1024)
    assert sign_test(0, 3000) == 0  # below the smallest float
    assert 0.3 < sign_test(4960, 5060) < 0.33  # 1.0 standard deviations


def test_mcnemar_counts_differing_answers() -> None:
    full = np.array([1, 1, 1, 1, 0, 0, 1.0])
    ours = np.array([1, 0, 0, 0, 1, 0, 1.0])
    found = mcnemar(ours, full)
    assert (found.only_full, found.only_this) == (3, 1) and found.p == pytest.approx(10 / 16)


def test_split_uses_the_right_answers_of_full() -> None:
    full = np.array([1, 1, 1, 1, 0, 0.0])
    downsampled = np.array([0, 0, 1, 0, 0, 1.0])
    ours = np.array([1, 0, 1, 1, 1, 1.0])
    found = split(ours, full, downsampled, "ds")
    assert found.reference == "ds" and found.easy == SplitPart(1, 1.0)
    assert found.hard.questions == 3 and found.hard.score == pytest.approx(2 / 3)
    assert split(ours, full * 0, downsampled, "ds").hard == SplitPart(0, None)


def test_half_right_counts_as_right_everywhere() -> None:
    half = np.array([0.3, 0.5, 0.6])
    assert right(half).tolist() == [False, True, True]
    assert mcnemar(half, np.zeros(3)).only_this == 2
    assert split(half, np.ones(3), half, "ds").easy.questions == 2


def schedule(name: str, method: str, tokens: float) -> Schedule:
    budget = Budget(tokens, 1 - tokens / 144, 1.0, 1.0, (1,))
    return Schedule(name, method, ModelIdentity("f", 4, 9, "x"), (Gate(1, 4),), budget)


def test_the_nearest_downsample() -> None:
    ours = schedule("a", "btp", 32)
    every = {s.name: s for s in (ours, schedule("d30", "downsample", 30), schedule("d36", "downsample", 36))}
    assert nearest_downsample(ours, every) == "d30"
    assert nearest_downsample(schedule("b", "btp", 34), every) == "d36"
    assert nearest_downsample(every["d30"], every) is None
    assert nearest_downsample(ours, {"a": ours}) is None


@pytest.mark.parametrize(("tokens", "found"), [(25, None), (25.6, "d"), (35.2, "d"), (36, None), (8, None), (0, None)])
def test_a_downsample_of_another_size_is_not_used(tokens: float, found: str | None) -> None:
    every = {"d": schedule("d", "downsample", 30)}
    assert nearest_downsample(schedule("a", "btp", tokens), every) == found


def test_controls_are_names_of_methods() -> None:
    assert DOWNSAMPLE in CONTROLS and set(CONTROLS) <= set(plugins.names(methods))
