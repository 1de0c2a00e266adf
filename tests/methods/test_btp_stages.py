# SPDX-License-Identifier: Apache-2.0
"""The stage rule on curves of known shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.methods.btp import changed, scaled_drop, scaled_layers, stages, tuned_tau

# Through the published points of arXiv 2505.22038, Table 8 (0, 0, 325, 141, 155, 45, 1 of 576 at layers 1, 5, 9, ...).
LLAVA = [0.0] * 6 + [0.1, 0.25, 0.4, 325 / 576, 0.5, 0.4, 0.3, 141 / 576, 0.26, 0.265, 0.267, 155 / 576]
LLAVA += [0.22, 0.16, 0.11, 45 / 576, 0.04, 0.02, 0.01, 1 / 576, 0, 0, 0, 0, 0.01, 0.6]


def test_llava_curve_gives_the_released_layers() -> None:
    found = stages(LLAVA, 0.05)
    assert (found.onset, found.peak) == (6, 9)
    assert found.layers == (3, 6, 14)
    assert found.drop == 22


def test_a_monotone_fall_ends_where_the_change_dies() -> None:
    found = stages([0, 0, 0, 0.1, 0.6, 0.4, 0.2, 0.04, 0.03, 0.02, 0.01, 0.9], 0.05)
    assert found.layers == (2, 4, 8) and found.drop == 9


def test_early_onset_keeps_two_layers_apart() -> None:
    found = stages([0.4, 0.5, 0.3, 0.2, 0.1, 0.3, 0.2, 0.5], 0.05)
    assert found.layers == (2, 4, 5) and found.drop is None


def test_curves_the_rule_refuses_say_why() -> None:
    assert "no layer changes more than 0.05" in stages([0.01] * 8, 0.05).problem
    assert "does not fall to a low" in stages([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], 0.05).problem
    assert "layers (2, 4, 3)" in stages([0.6, 0.5, 0.1, 0.2, 0.3, 0.2, 0.1, 0.1], 0.05).problem


@given(st.lists(st.sampled_from([0, 0.02, 0.1, 0.3, 0.3, 0.6]), min_size=2, max_size=40))
def test_layers_always_increase_within_the_model(change: list[float]) -> None:
    found = stages(change, 0.05)
    assert bool(found.layers) != bool(found.problem)
    chain = (0, *found.layers, *([] if found.drop is None else [found.drop]))
    assert list(chain) == sorted(set(chain)) and chain[-1] < len(change)
    if found.drop is not None:
        assert max(change[found.drop : -1]) <= 0.05


def test_scaled_layers() -> None:
    assert [(*scaled_layers(depth), scaled_drop(depth, 0)) for depth in (32, 40, 28, 16, 8)] == [
        (3, 6, 14, 22),
        (4, 8, 18, 28),
        (3, 5, 12, 19),
        (2, 3, 7, 11),
        (1, 2, 4, 6),
    ]
    assert scaled_layers(4) == (1, 2, 3) and scaled_drop(4, 3) is None
    assert scaled_layers(3) == (1, 2)


def test_tau_is_tuned_to_a_telling_share() -> None:
    rng = np.random.default_rng(0)
    similarity = (1 - rng.random((6, 4, 50)) * 0.02).astype(np.float32)  # at 0.93 nothing has changed
    similarity[-1] = 0.2  # the last layer always changes
    assert max(changed(similarity, 0.93)[:-1]) == 0
    tau = tuned_tau(similarity)
    assert max(changed(similarity, tau)[:-1]) == pytest.approx(0.5, abs=0.03)
    step = np.where(np.arange(200).reshape(1, 4, 50) < 160, 0.5, 1.0).astype(np.float32).repeat(3, 0)
    assert max(changed(step, tuned_tau(step))[:-1]) == 0.8  # the only share there is above 0
