# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from secateur.evaluation import compare as module
from secateur.evaluation.compare import Retention, resamples, retention
from secateur.evaluation.tasks.base import mean

Array = NDArray[np.float64]


def accuracy(right: Sequence[float]) -> Callable[[Array], Array]:
    return lambda weights: mean(np.array(right, float), weights)


def compare(ours: Sequence[float], reference: Sequence[float], seed: int = 0) -> Retention:
    return retention(accuracy(ours), accuracy(reference), [str(i) for i in range(len(ours))], seed)


def test_counts_and_brackets() -> None:
    found = compare([1] * 60 + [0] * 40, [1] * 80 + [0] * 20)
    assert found.score == 0.6 and found.retention == pytest.approx(0.75)
    assert found.retention_interval is not None
    assert found.score_interval[0] < 0.6 < found.score_interval[1]
    assert found.retention_interval[0] < 0.75 < found.retention_interval[1]
    # The binomial interval of 60 of 100 is about 0.50 to 0.70.
    assert found.score_interval == pytest.approx((0.5, 0.7), abs=0.02)


def test_the_comparison_is_paired() -> None:
    """A run that loses the same share everywhere has a narrow retention interval, although its score is uncertain."""
    same = compare([1, 0, 1], [1, 0, 1])
    assert same.retention == 1 and same.retention_interval == (1, 1)
    half = compare([0.5, 0, 0.5, 0] * 20, [1, 0, 1, 0] * 20)
    assert half.retention_interval == (0.5, 0.5) and half.score_interval[0] < 0.22


def test_equals_a_loop_over_resamples() -> None:
    ours, reference = [1, 1, 0, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 1, 1, 0]
    rng = np.random.default_rng(7)
    ratios = []
    for _ in range(module.RESAMPLES):
        picks = rng.integers(0, 8, 8)
        ratios.append(sum(ours[i] for i in picks) / sum(reference[i] for i in picks))
    assert compare(ours, reference, 7).retention_interval == pytest.approx(tuple(np.percentile(ratios, (2.5, 97.5))))


def test_pieces_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    clusters = [str(i // 2) for i in range(14)]
    whole = np.concatenate(list(resamples(clusters, 3)))
    monkeypatch.setattr(module, "CHUNK", 100)
    pieces = list(resamples(clusters, 3))
    assert len(pieces) > 1 and (np.concatenate(pieces) == whole).all()
    assert whole.shape == (module.RESAMPLES, 14) and (whole.sum(axis=1) == 14).all()
    assert (whole[:, ::2] == whole[:, 1::2]).all()  # a cluster is drawn as a whole
    assert not (whole == 1).all()


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_takes_any_pairs(pairs: list[tuple[bool, bool]]) -> None:
    ours, reference = [float(a) for a, _ in pairs], [float(b) for _, b in pairs]
    found = compare(ours, reference)
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
    right = rng.integers(0, 2, 50).astype(float)
    pictures = [f"{i}.png" for i in range(50)]
    once = retention(accuracy(right.tolist()), accuracy([1] * 50), pictures)
    copies = accuracy(np.repeat(right, 6).tolist()), accuracy([1] * 300)
    together = retention(*copies, [name for name in pictures for _ in range(6)])
    assert together.score_interval == pytest.approx(once.score_interval)
    assert together.retention_interval == pytest.approx(once.retention_interval)
    low, high = retention(*copies, [str(i) for i in range(300)]).score_interval
    assert high - low < 0.6 * (once.score_interval[1] - once.score_interval[0])


def test_needs_questions() -> None:
    with pytest.raises(ValueError, match="no questions"):
        compare([], [])
