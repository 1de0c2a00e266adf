# SPDX-License-Identifier: Apache-2.0
"""The random control."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods import btp, random
from secateur.selection.budget import BudgetRequest
from secateur.selection.selector import Fixed


def slots(site: Any, seed: int, layer: int = 3, tokens: int = 6, keep: int = 3) -> tuple[int, ...]:
    selector = random.Method.choose(site(Gate(layer, keep, selector={"seed": seed}), tokens, (2, 3)))
    assert isinstance(selector, Fixed)
    return tuple(selector.slots.tolist())


def test_seed_and_layer_decide(site: Any) -> None:
    assert slots(site, 0) == slots(site, 0) == (0, 4, 5)  # must not drift: schedules name a seed only
    assert len({slots(site, 0, layer, 40, 20) for layer in range(8)}) == 8
    assert len({slots(site, seed, 3, 40, 20) for seed in range(8)}) == 8


def test_every_slot_is_as_likely(site: Any) -> None:
    drawn = Counter(slot for seed in range(600) for slot in slots(site, seed))
    assert all(abs(drawn[slot] - 300) < 60 for slot in range(6))


def test_like_copies_layers_and_counts(measured: Any) -> None:
    original = btp.Method().calibrate(measured(16, (12, 12)), BudgetRequest(compression=0.78))
    control = random.Method().like(original)
    assert control.name == f"{original.name}-random" and control.method == "random"
    assert [(g.layer, g.keep) for g in control.gates] == [(g.layer, g.keep) for g in original.gates]
    assert control.budget == original.budget and control.model == original.model
    assert random.Method(seed=2).like(original).name == f"{original.name}-random-2"


def test_bad_seed() -> None:
    with pytest.raises(BadSchedule, match="seed -1"):
        random.Method(seed=-1)
