# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.sampling import Sampling
from secateur.errors import InputError, SecateurError, UnknownName
from secateur.runtime.sampling import Sampler, SamplingOptions, merge

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def test_greedy_takes_the_first_of_equals() -> None:
    assert Sampler(Sampling()).pick(np.array([1.0, 3.0, 3.0])) == 1


def test_temperature_and_top_p() -> None:
    plain = Sampler(Sampling(temperature=1.0)).probabilities(LOGITS)
    np.testing.assert_allclose(plain, [0.1, 0.4, 0.2, 0.3], rtol=1e-6)
    cut = Sampler(Sampling(temperature=1.0, top_p=0.6)).probabilities(LOGITS)
    np.testing.assert_allclose(cut, [0, 4 / 7, 0, 3 / 7], rtol=1e-6)
    only = Sampler(Sampling(temperature=1.0, top_p=1e-9)).probabilities(LOGITS)
    np.testing.assert_allclose(only, [0, 1, 0, 0])
    cold = Sampler(Sampling(temperature=1e-300)).probabilities(LOGITS)
    np.testing.assert_allclose(cold, [0, 1, 0, 0])


@given(st.integers(0, 1000))
def test_a_seed_repeats(seed: int) -> None:
    options = Sampling(temperature=1.0, seed=seed)
    draws = [[sampler.pick(LOGITS) for _ in range(8)] for sampler in (Sampler(options), Sampler(options))]
    assert draws[0] == draws[1]


def test_draws_follow_the_probabilities() -> None:
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.95, seed=3))
    counts = np.bincount([sampler.pick(LOGITS) for _ in range(4000)], minlength=4) / 4000
    np.testing.assert_allclose(counts, sampler.probabilities(LOGITS), atol=0.03)


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=30),
    st.floats(1e-3, 100),
    st.floats(0, 1, exclude_min=True),
)
def test_probabilities_are_valid_for_any_options(logits: list[float], temperature: float, top_p: float) -> None:
    got = Sampler(Sampling(temperature=temperature, top_p=top_p)).probabilities(np.array(logits, np.float32))
    # Logits that differ by less than a rounding error are equally likely, so any of the largest may be kept.
    likeliest = np.isclose(logits, max(logits), atol=1e-3 * temperature)
    assert np.isclose(got.sum(), 1) and (got >= 0).all() and got[likeliest].max() > 0


def test_nan_logits_are_an_error() -> None:
    with pytest.raises(SecateurError, match="NaN"):
        Sampler(Sampling()).pick(np.array([0.0, np.nan]))


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": 1.5},
        {"max_new_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"temperature": "hot"},
        {"top_p": 0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"seed": -1},
        {"seed": None},
    ],
    ids=str,
)
def test_options_out_of_bounds(options: dict[str, Any]) -> None:
    (name, value) = next(iter(options.items()))
    with pytest.raises(InputError, match=f"{name} must be .*got") as caught:
        Sampling(**options)
    assert repr(value) in str(caught.value)


def test_options_replace_those_of_a_sampling() -> None:
    merged = merge(Sampling(max_new_tokens=5, seed=3), {"temperature": 1.5})
    assert merged == Sampling(max_new_tokens=5, temperature=1.5, seed=3)
    assert merge(Sampling(), {}) == Sampling()
    assert list(SamplingOptions.__annotations__) == [field.name for field in fields(Sampling)]


def test_a_misspelt_option_is_refused_with_a_hint() -> None:
    with pytest.raises(UnknownName, match="max_new_token.*max_new_tokens"):
        merge(Sampling(), {"max_new_token": 5})  # type: ignore[typeddict-unknown-key]
