# SPDX-License-Identifier: Apache-2.0
"""V2Drop against plain sums of squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.v2drop import Changed, Method
from secateur.selection.budget import BudgetRequest
from tests.model_fixtures.gates import START

LLAVA = (32, (24, 24))


def oracle(after: list[list[int]], before: list[list[int]], tokens: int, keep: int) -> list[int]:
    """Return the slots of the largest sums of squared differences, ties to the lower slot."""
    change = [
        sum((x - y) ** 2 for x, y in zip(after[START + i], before[START + i], strict=True)) for i in range(tokens)
    ]
    return sorted(sorted(range(tokens), key=lambda i: (-change[i], i))[:keep])


def test_fuzz(site: Any, random_rows: Any) -> None:
    rng = np.random.default_rng(0)
    for seed in range(60):
        tokens = int(rng.integers(2, 26))
        keep = int(rng.integers(1, tokens))
        rows = random_rows(tokens, batch=3, seed=seed)
        after, before = (torch.tensor(rng.integers(-2, 3, rows.hidden_states.shape)) for _ in range(2))
        rows = rows._replace(hidden_states=after.float(), read={"layer_input": before.float()})
        got = Changed(site(Gate(3, keep), tokens, (1, tokens)))(rows).tolist()
        expected = [oracle(a, b, tokens, keep) for a, b in zip(after.tolist(), before.tolist(), strict=True)]
        assert got == expected, seed


def test_change_is_measured_in_fp32(site: Any, random_rows: Any) -> None:
    """In fp16 the squares of large changes would all be infinite."""
    rows = random_rows(6, batch=1)
    before = rows.hidden_states.half()
    after = before.clone()
    after[0, START : START + 6] += torch.tensor([300.0, 400, 500, 600, 700, 800])[:, None].half()
    rows = rows._replace(hidden_states=after, read={"layer_input": before})
    assert Changed(site(Gate(3, 2), 6, (2, 3)))(rows).tolist() == [[4, 5]]


def test_size_of_a_state_does_not_matter(site: Any, random_rows: Any) -> None:
    rows = random_rows(6, batch=1)
    before = torch.zeros_like(rows.hidden_states)
    before[0, START + 2] = 100
    after = before.clone()
    after[0, START + 5] += 1
    rows = rows._replace(hidden_states=after, read={"layer_input": before})
    assert Changed(site(Gate(3, 1), 6, (2, 3)))(rows).tolist() == [[5]]


def test_published_defaults(measured: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest())
    assert [(g.layer, g.keep) for g in schedule.gates] == [(3, 288), (17, 144), (22, 1)]
    assert round(schedule.budget.average_tokens) == 203
    shallow = Method().calibrate(measured(4), BudgetRequest())
    assert [(g.layer, g.keep) for g in shallow.gates] == [(1, 10), (2, 5), (3, 1)]


@pytest.mark.parametrize("average", [192, 128, 64])
def test_compression(average: int, measured: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest(compression=1 - average / 576))
    assert schedule.budget.average_tokens == pytest.approx(average, abs=1)
    assert schedule.gates[-1].keep == 1


def test_a_single_token_fits(measured: Any) -> None:
    assert [g.keep for g in Method().calibrate(measured(8, (1, 1)), BudgetRequest()).gates] == [1, 1, 1]


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing_reads_nothing(keep: int, site: Any, random_rows: Any) -> None:
    selector = Method.choose(site(Gate(3, keep), 20, (4, 5)))
    assert selector.reads == ()
    assert torch.equal(selector(random_rows(20, batch=2)), torch.arange(keep).expand(2, -1))


def test_bad_requests(measured: Any, site: Any) -> None:
    with pytest.raises(BadSchedule, match="layer 0 must be at layer 1 or later"):
        Method().calibrate(measured(), BudgetRequest(layers=(0,)))
    with pytest.raises(BadSchedule, match="selector of a v2drop gate: unknown constant 'p'; leave it out"):
        Method.choose(site(Gate(3, 7, selector={"p": 1}), 20, (4, 5)))
