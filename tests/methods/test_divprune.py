# SPDX-License-Identifier: Apache-2.0
"""DivPrune against a greedy loop over plain cosines."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.divprune import Diverse, Method
from secateur.selection.budget import BudgetRequest
from tests.model_fixtures.gates import START

LLAVA = (32, (24, 24))


def oracle(rows: NDArray[np.float64], keep: int) -> list[int]:
    """Choose the most isolated token, then always the one farthest from all chosen tokens, in loops."""
    tokens = range(len(rows))

    def apart(i: int, j: int) -> float:
        return 1 - float(np.dot(rows[i], rows[j]) / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])))

    chosen = [max(tokens, key=lambda i: (min(apart(i, j) for j in tokens if j != i), -i))]
    while len(chosen) < keep:
        free = [i for i in tokens if i not in chosen]
        chosen.append(max(free, key=lambda i: (min(apart(i, j) for j in chosen), -i)))
    return sorted(chosen)


def test_fuzz(random_rows: Any) -> None:
    rng = np.random.default_rng(0)
    for seed in range(60):
        tokens = int(rng.integers(2, 20))
        keep = int(rng.integers(1, tokens))
        rows = random_rows(tokens, batch=3, seed=seed)
        assert Diverse(keep)(rows).tolist() == [oracle(v, keep) for v in rows.vision.double().numpy()], seed


def test_length_does_not_matter_and_only_vision_rows_do(random_rows: Any) -> None:
    rows = random_rows(12, batch=2)
    hidden = rows.hidden_states * torch.rand(2, rows.hidden_states.shape[1], 1).add(0.5)
    hidden[:, :START] = 7
    hidden[:, START + 12 :] = -7
    assert torch.equal(Diverse(5)(rows._replace(hidden_states=hidden)), Diverse(5)(rows))


def test_duplicates_are_kept_last(random_rows: Any) -> None:
    rows = random_rows(12, batch=2)
    rows.hidden_states[:, START + 6 : START + 12] = rows.hidden_states[:, START : START + 6]
    for slots in Diverse(6)(rows).tolist():
        assert {slot % 6 for slot in slots} == set(range(6))


def test_equal_tokens_are_kept_once_each(random_rows: Any) -> None:
    """All tokens are equal, but no slot is chosen twice."""
    rows = random_rows(9, batch=2)
    rows.hidden_states[:] = 1
    for slots in Diverse(8)(rows).tolist():
        assert len(set(slots)) == 8


def test_fp16_rows_are_compared_in_fp32(random_rows: Any) -> None:
    rows = random_rows(10, batch=2)
    large = rows._replace(hidden_states=(rows.hidden_states * 1000).half())  # squares beyond fp16
    assert Diverse(4)(large).tolist() == [oracle(v, 4) for v in large.vision.double().numpy()]


def test_published_defaults(measured: Any) -> None:
    schedule = Method().calibrate(measured(*LLAVA), BudgetRequest())
    assert [(g.layer, g.keep, g.kind) for g in schedule.gates] == [(0, round(0.098 * 576), "prune")]
    for tokens in (192, 128, 64):
        asked = Method().calibrate(measured(*LLAVA), BudgetRequest(compression=1 - tokens / 576))
        assert [(g.layer, g.keep) for g in asked.gates] == [(0, tokens)]


def test_later_layers_compare_hidden_states(measured: Any, site: Any) -> None:
    gate = Method().calibrate(measured(), BudgetRequest(layers=(2,), keep=(7,))).gates[0]
    selector = Method.choose(site(gate, 20, (4, 5)))
    assert isinstance(selector, Diverse) and (gate.layer, selector.reads) == (2, ())


@pytest.mark.parametrize("keep", [0, 20])
def test_all_or_nothing(keep: int, site: Any, random_rows: Any) -> None:
    selector = Method.choose(site(Gate(0, keep), 20, (4, 5)))
    assert torch.equal(selector(random_rows(20, batch=2)), torch.arange(keep).expand(2, -1))


def test_three_nodes_a_pick(site: Any, random_rows: Any, exported_slots: Any) -> None:
    rows = random_rows(12, whole=False)
    got = exported_slots([Method.choose(site(Gate(0, 5), 12, (3, 4)))], [rows], [5], 20)
    assert got.outputs[0].tolist() == [oracle(v, 5) for v in rows.vision.double().numpy()]
    count = Counter(node.op_type for node in got.graph.node)
    # The last pick needs no distances, and the first pick no comparison with earlier ones.
    assert (count["TopK"], count["GatherND"], count["Min"]) == (5 + 1, 5 - 1, 5 - 2)


def test_bad_selector_block(site: Any) -> None:
    with pytest.raises(BadSchedule, match="selector of a divprune gate: unknown constant 'ratio'; leave it out"):
        Method.choose(site(Gate(0, 7, selector={"ratio": 0.1}), 20, (4, 5)))
