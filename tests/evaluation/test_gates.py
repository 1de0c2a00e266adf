# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from secateur.artifacts import KINDS
from secateur.evaluation.gates import IN_FRONT, place, shown_gates


def test_gates_shown() -> None:
    assert shown_gates(0) == [] and shown_gates(3) == [0, 1, 2]
    assert shown_gates(4) == [0, 1, 3] and shown_gates(16) == [0, 7, 15]


def test_only_gates_in_the_decoder_have_a_layer() -> None:
    assert place("prune", 4) == place("route", 4) == "layer 4"
    assert place("vision", 0) == "encoder" and place("downsample", 0) == "smaller image"
    assert set(IN_FRONT) < set(KINDS)
