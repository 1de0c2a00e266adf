# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secateur import methods, plugins
from secateur.bundle.layout import ModelIdentity
from secateur.bundle.schedule import Budget, Gate, Schedule
from secateur.evaluation import compare as module
from secateur.evaluation.compare import (
    Retention,
    mcnemar,
    nearest_downsample,
    resamples,
    retention,
    right,
    sign_test,
    split,
)
from secateur.evaluation.results import CONTROLS, DOWNSAMPLE, SplitPart
from secateur.evaluation.tasks.base import mean

Array = NDArray[np.float64]


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


def accuracy(verdicts: Sequence[float]) -> Callable[[Array], Array]:
    return lambda weights: mean(np.array(verdicts, float), weights)


def compared(ours: Sequence[float], reference: Sequence[float], seed: int = 0) -> Retention:
    return retention(accuracy(ours), accuracy(reference), [str(i) for i in range(len(ours))], seed)


def test_retention_with_intervals() -> None:
    found = compared([1] * 60 + [0] * 40, [1] * 80 + [0] * 20)
    assert found.score == 0.6 and found.retention == pytest.approx(0.75)
    assert found.retention_interval is not None
    assert found.score_interval[0] < 0.6 < found.score_interval[1]
    assert found.retention_interval[0] < 0.75 < found.retention_interval[1]
    # The binomial interval of 60 of 100 is about 0.50 to 0.70.
    assert found.score_interval == pytest.approx((0.5, 0.7), abs=0.02)


def test_the_comparison_is_paired() -> None:
    """A run that loses the same share everywhere has a narrow retention interval, although its score is uncertain."""
    same = compared([1, 0, 1], [1, 0, 1])
    assert same.retention == 1 and same.retention_interval == (1, 1)
    half = compared([0.5, 0, 0.5, 0] * 20, [1, 0, 1, 0] * 20)
    assert half.retention_interval == (0.5, 0.5) and half.score_interval[0] < 0.22


def test_retention_equals_a_loop_over_resamples() -> None:
    ours, reference = [1, 1, 0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 0]
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(module.RESAMPLES):
        picks = rng.integers(0, 8, 8)
        ratios.append(sum(ours[i] for i in picks) / sum(reference[i] for i in picks))
    assert compared(ours, reference, 7).retention_interval == pytest.approx(tuple(np.percentile(ratios, (2.5, 97.5))))


def test_resamples_do_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = [str(i // 2) for i in range(14)]
    whole = np.concatenate(list(resamples(clusters, 3)))
    monkeypatch.setattr(module, "CHUNK", 100)
    pieces = list(resamples(clusters, 3))
    assert len(pieces) > 1 and (np.concatenate(pieces) == whole).all()
    assert whole.shape == (module.RESAMPLES, 14) and (whole.sum(axis=1) == 14).all()
    assert (whole[:, ::2] == whole[:, 1::2]).all()  # a cluster is drawn as a whole
    assert not (whole == 1).all()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_retention_of_any_pairs(pairs: list[tuple[bool, bool]]) -> None:
    ours, reference = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = compared(ours, reference)
    low, high = found.score_interval
    assert 0 <= low <= high <= 1
    if not any(reference):
        assert found.retention is None and found.retention_interval is None
    else:
        assert found.retention == pytest.approx(sum(ours) / sum(reference))
        assert found.retention_interval is not None and np.isfinite(found.retention_interval).all()


def test_questions_about_one_picture_are_drawn_together() -> None:
    """Six copies of a question have no more information than one, so the interval is that of the pictures."""
    rng = np.random.default_rng(0)
    verdicts = rng.integers(0, 2, 50).astype(float)
    pictures = [f"{i}.png" for i in range(50)]
    once = retention(accuracy(verdicts.tolist()), accuracy([1] * 50), pictures)
    copies = accuracy(np.repeat(verdicts, 6).tolist()), accuracy([1] * 300)
    together = retention(*copies, [name for name in pictures for _ in range(6)])
    assert together.score_interval == pytest.approx(once.score_interval)
    assert together.retention_interval == pytest.approx(once.retention_interval)
    low, high = retention(*copies, [str(i) for i in range(300)]).score_interval
    assert high - low < 0.6 * (once.score_interval[1] - once.score_interval[0])


def test_retention_without_questions() -> None:
    with pytest.raises(ValueError, match="no questions"):
        compared([], [])
