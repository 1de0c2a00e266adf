# SPDX-License-Identifier: Apache-2.0
"""The selection of BTP against lists, sets and loops of plain Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Gate
from secateur.errors import BadSchedule
from secateur.methods.btp import Method
from secateur.selection import attention, diversity
from secateur.selection.balanced import BalancedSelector, Quotas, disjoint_quotas, first_points, union_quotas
from secateur.selection.budget import BudgetRequest
from secateur.selection.constants import parameters
from secateur.selection.selector import GateInputs, GateSite
from secateur.selection.spatial import spatial_points

Matrix = NDArray[np.float32]
FUZZ = settings(max_examples=150)


def best(score: Sequence[float], count: int) -> list[int]:
    return sorted(range(len(score)), key=lambda i: (-score[i], i))[:count]


def rebalance(score: Sequence[float], quota: int, over: int, early: int) -> list[int]:
    candidates = best(score, over)
    return ([r for r in candidates if r < early] + [r for r in candidates if r >= early])[:quota]


def farthest(distance: Matrix, count: int, start: Iterable[int] = ()) -> list[int]:
    """Return greedy max-min picks, ties to the lower index."""
    tokens, chosen = range(len(distance)), list(start)
    picks: list[int] = []
    for _ in range(count):
        free = [j for j in tokens if j not in chosen]
        if chosen:
            reach = {j: min(distance[j, i] for i in chosen) for j in free}
        else:
            reach = {j: min([distance[j, i] for i in tokens if i != j], default=9) for j in free}
        pick = max(free, key=lambda j: (reach[j], -j))
        picks.append(pick)
        chosen.append(pick)
    return picks


def from_afar(points: Iterable[int], columns: int, euclidean: bool) -> list[int]:
    """Sort points of a grid as farthest-point sampling picks them from the first one on, ties to the lower index."""
    at = {point: np.array(divmod(point, columns)) for point in points}

    def apart(one: int, other: int) -> float:
        return float(np.linalg.norm(at[one] - at[other], ord=2 if euclidean else 1))

    found = [min(at)] if at else []
    while len(found) < len(at):
        reach = {point: min(apart(point, other) for other in found) for point in at if point not in found}
        found.append(max(reach, key=lambda point: (round(reach[point], 6), -point)))
    return found


def union(
    distance: Matrix, score: Sequence[float], q: Quotas, points: Sequence[int], keep: int, columns: int
) -> list[int]:
    sets = {*rebalance(score, q.attention, q.over, q.early), *farthest(distance, q.diversity)}
    for point in from_afar(points, columns, q.pattern == "euclidean"):
        if len(sets) < keep:
            sets.add(point)
    chosen = sorted(sets)
    picks = farthest(distance, min(q.fills, keep - len(chosen)), chosen)
    chosen += picks
    reach = [min(distance[j, i] for i in chosen) for j in range(len(distance))]
    rest = [j for j in best(reach, len(reach)) if j not in chosen]
    return sorted(chosen + rest[: keep - len(chosen)])


def disjoint(distance: Matrix, score: Sequence[float], q: Quotas, order: Sequence[int]) -> list[int]:
    chosen = rebalance(score, q.attention, q.over, q.early)
    chosen += [slot for slot in order if slot not in chosen][: q.spatial]
    return sorted(chosen + farthest(distance, q.diversity, chosen))


def site_of(quotas: Quotas, keep: int, grid: tuple[int, int], tokens: int | None = None) -> GateSite:
    gate = Gate(3, keep, selector=vars(quotas))
    return GateSite(gate, tokens or grid[0] * grid[1], 1, grid, Dimensions(8, 8, 2, 1, 4, 16, 10, 64, 8))


def rows_of(rng: np.random.Generator, tokens: int, batch: int, coarse: bool) -> GateInputs:
    """Return rows with integer scores, so that they tie; with `coarse` many distances are equal too."""
    shape = (batch, tokens, 4)
    vision = rng.integers(-1, 2, shape) if coarse else rng.normal(size=shape)
    rows = np.concatenate([np.ones((batch, 1, 4)), vision, np.ones((batch, 1, 4))], axis=1)
    return GateInputs(
        hidden_states=torch.tensor(rows, dtype=torch.float32),
        position_ids=torch.arange(tokens + 2).repeat(batch, 1),
        attention_mask=torch.ones(batch, tokens + 2, dtype=torch.int64),
        vision_index=torch.arange(tokens).repeat(batch, 1),
        image_start=1,
        read={
            "query": torch.tensor(rng.integers(-2, 3, (batch, 2, 4)), dtype=torch.float32),
            "key": torch.tensor(rng.integers(-2, 3, (tokens + 2, batch, 1, 4)), dtype=torch.float32),
        },
    )


def compare(selector: BalancedSelector, rows: GateInputs, oracle: Callable[[Matrix, list[float]], list[int]]) -> None:
    distance = diversity.cosine_distance(rows.vision, rows.vision_index)
    tokens = rows.vision.shape[1]
    score = attention.attention_logits(rows.read["query"], rows.read["key"][1 : 1 + tokens])
    expected = [oracle(distance[b].numpy(), score[b].tolist()) for b in range(len(distance))]
    assert selector(rows).tolist() == expected


@FUZZ
@given(st.lists(st.integers(0, 5), min_size=1, max_size=20), st.data())
def test_rebalance(score: list[int], data: st.DataObject) -> None:
    over = data.draw(st.integers(1, len(score)))
    quota = data.draw(st.integers(1, over))
    early = data.draw(st.integers(0, len(score)))
    got = attention.rebalance(torch.tensor([score, score[::-1]], dtype=torch.float32), quota, over, early)
    assert set(got[0].tolist()) == set(rebalance(score, quota, over, early))
    assert set(got[1].tolist()) == set(rebalance(score[::-1], quota, over, early))
    if quota < over:
        assert got[0].tolist() == rebalance(score, quota, over, early)


@FUZZ
@given(st.integers(1, 12), st.integers(1, 3), st.integers(0, 2**32 - 1), st.data())
def test_farthest(tokens: int, batch: int, seed: int, data: st.DataObject) -> None:
    distance = np.random.default_rng(seed).integers(0, 4, (batch, tokens, tokens)).astype(np.float32)
    distance = ((distance + distance.transpose(0, 2, 1)).clip(max=2) / 4).astype(np.float32)
    distance[:, range(tokens), range(tokens)] = diversity.SELF
    start = data.draw(st.lists(st.integers(0, tokens - 1), max_size=tokens))  # repeats are harmless
    free = tokens - len(set(start))
    if free == 0:
        return
    count = data.draw(st.integers(1, free))
    tensor = torch.tensor(distance)
    begun = diversity.nearest(tensor, torch.tensor([start] * batch)) if start else None
    picks, reach = diversity.farthest(tensor, count, begun)
    for b in range(batch):
        assert picks[b].tolist() == farthest(distance[b], count, start)
        chosen = {*start, *picks[b].tolist()}
        assert [j for j in range(tokens) if reach[b, j] < 0] == sorted(chosen)


@FUZZ
@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(0, 2**32 - 1), st.booleans(), st.data())
def test_union(grid: tuple[int, int], seed: int, coarse: bool, data: st.DataObject) -> None:
    tokens = grid[0] * grid[1]
    if tokens < 2:
        return
    keep = data.draw(st.integers(1, tokens - 1))
    pattern = data.draw(st.sampled_from(["off", "manhattan", "euclidean", "lattice"]))
    points = first_points(pattern, grid, tokens, keep)
    share, over = data.draw(st.sampled_from([0.0, 0.3, 0.9, 1.0])), data.draw(st.sampled_from([1.0, 1.2, 3.7]))
    early = data.draw(st.sampled_from([keep, (tokens + 1) // 2]))
    quotas = union_quotas(tokens, keep, share, over, data.draw(st.sampled_from([0, 2, 64])), points, early)
    quotas = Quotas(**vars(quotas) | {"pattern": pattern if points else "off"})
    selector = BalancedSelector(parameters(Quotas, vars(quotas), "btp"), site_of(quotas, keep, grid))
    rows = rows_of(np.random.default_rng(seed), tokens, data.draw(st.integers(1, 3)), coarse)
    compare(selector, rows, lambda d, a: union(d, a, quotas, points, keep, grid[1]))


@pytest.mark.parametrize(
    ("pattern", "points", "left"),
    [
        ("manhattan", [0, 15, 3, 9], [0, 3, 15]),
        ("euclidean", [0, 15, 3, 12], [0, 3, 15]),
        ("lattice", [0, 10, 2, 8], [0, 2, 10]),
    ],
)
def test_a_union_that_is_too_large_keeps_the_first_points(pattern: str, points: list[int], left: list[int]) -> None:
    """Tokens 5, 7 and 13 by attention and 6 by diversity leave room for three of four points on a 4 x 4 grid."""
    assert list(spatial_points(pattern, (4, 4), 4)) == points == from_afar(points, 4, pattern == "euclidean")
    quotas = Quotas("union", 3, 3, 0, spatial=4, pattern=pattern, diversity=1, fills=1)
    rows = rows_of(np.random.default_rng(0), 16, 1, coarse=False)
    vision, key = torch.ones(1, 18, 4), torch.zeros(18, 1, 1, 4)
    vision[:, 1 + 6, 0] = -9
    key[[1 + 5, 1 + 7, 1 + 13]] = 1
    rows = rows._replace(hidden_states=vision, read={"query": torch.ones(1, 2, 4), "key": key})
    chosen = BalancedSelector(quotas, site_of(quotas, 7, (4, 4)))(rows)
    assert chosen[0].tolist() == sorted([5, 7, 13, 6, *left])


@FUZZ
@given(st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(0, 2**32 - 1), st.booleans(), st.data())
def test_disjoint(grid: tuple[int, int], seed: int, coarse: bool, data: st.DataObject) -> None:
    tokens = grid[0] * grid[1]
    if tokens < 2:
        return
    keep = data.draw(st.integers(1, tokens - 1))
    pattern = data.draw(st.sampled_from(["off", "manhattan", "euclidean"]))
    points = first_points(pattern, grid, tokens, keep)
    weight, over = data.draw(st.sampled_from([0.0, 0.2, 0.6, 1.0])), data.draw(st.sampled_from([1.0, 1.5]))
    quotas = disjoint_quotas(tokens, keep, round(weight * keep), over, points, (tokens + 1) // 2)
    quotas = Quotas(**vars(quotas) | {"pattern": pattern if quotas.spatial else "off"})
    order = spatial_points(pattern, grid, tokens) if quotas.spatial else ()
    selector = BalancedSelector(parameters(Quotas, vars(quotas), "btp"), site_of(quotas, keep, grid))
    rows = rows_of(np.random.default_rng(seed), tokens, data.draw(st.integers(1, 3)), coarse)
    compare(selector, rows, lambda d, a: disjoint(d, a, quotas, order))


def test_released_gates_at_full_size() -> None:
    """The three gates of LLaVA-1.5 at their real sizes equal plain sets."""
    rng = np.random.default_rng(0)
    points = spatial_points("manhattan", (24, 24), 144)
    gates = [
        (576, 288, union_quotas(576, 288, 0.3, 3.7, 64, points, 288)),
        (288, 144, union_quotas(288, 144, 0.9, 1.5, 64, (), 144)),
        (144, 48, union_quotas(144, 48, 1.0, 1.2, 64, (), 48)),
    ]
    numbers = [(q.attention, q.over, q.early, q.spatial, q.diversity, q.fills) for _, _, q in gates]
    assert numbers == [(86, 318, 288, 144, 86, 64), (129, 193, 144, 0, 14, 15), (48, 57, 48, 0, 0, 0)]
    for tokens, keep, quotas in gates:
        quotas = Quotas(**vars(quotas) | {"pattern": "manhattan" if quotas.spatial else "off"})
        selector = BalancedSelector(quotas, site_of(quotas, keep, (24, 24), tokens))
        rows = rows_of(rng, tokens, 1, coarse=False)._replace(hidden_states=torch.randn(1, tokens + 2, 64))
        used = points if quotas.spatial else ()
        compare(selector, rows, lambda d, a, q=quotas, p=used, k=keep: union_fast(d, a, q, p, k))  # type: ignore[misc]


def union_fast(distance: Matrix, score: Sequence[float], q: Quotas, points: Sequence[int], keep: int) -> list[int]:
    """Return what `union` does, faster, and without a limit on the fills."""

    def greedy(count: int, chosen: list[int]) -> list[int]:
        apart = np.where(np.eye(len(distance), dtype=bool), 9, distance)
        chosen = list(chosen)
        for _ in range(count):
            reach = apart[:, chosen].min(1) if chosen else apart.min(1)
            reach[chosen] = -1
            chosen.append(int(reach.argmax()))
        return chosen

    members = {*rebalance(score, q.attention, q.over, q.early), *greedy(q.diversity, []), *points}
    return sorted(greedy(keep - len(members), sorted(members)))


def test_distance_against_numpy() -> None:
    features = np.random.default_rng(0).normal(size=(2, 7, 5))
    features[0, 3] = features[0, 1]
    features[1, 2] = 0
    index = torch.arange(7).repeat(2, 1)
    got = diversity.cosine_distance(torch.tensor(features).half(), index)
    assert got.dtype == torch.float32 and bool(torch.isfinite(got).all())
    rows = features / np.maximum(np.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    expected = (1 - rows @ rows.transpose(0, 2, 1)).clip(0) / 4
    expected[:, range(7), range(7)] = diversity.SELF
    expected[1, 2, 2] += 0.25  # a row of zeros has cosine 0 with all rows, itself included
    np.testing.assert_allclose(got, expected, atol=2e-3)
    assert 0 <= got[0, 1, 3] < 1e-6


class Picks(nn.Module):
    """Greedy picks from an empty set and from a start set, and a rebalanced choice."""

    def forward(self, distance: Tensor, start: Tensor, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        cold = diversity.farthest(distance, 5)[0]
        warm = diversity.farthest(distance, 4, diversity.nearest(distance, start))[0]
        return cold, warm, attention.rebalance(score, 4, 9, 6)


@pytest.mark.parametrize("opset", [20, 23])
def test_onnx_breaks_ties_the_same(opset: int, exported: Any) -> None:
    rng, batch = np.random.default_rng(1), 7
    distance = torch.tensor(rng.integers(0, 3, (batch, 12, 12)), dtype=torch.float32) / 4
    distance[:, range(12), range(12)] = diversity.SELF
    start, score = torch.tensor(rng.integers(0, 12, (batch, 3))), torch.tensor(rng.integers(0, 4, (batch, 12))).float()
    named = {"distance": distance, "start": start, "score": score}
    got = exported(Picks(), named, (5, 4, 4), opset)
    for slots, expected in zip(got.outputs, Picks()(distance, start, score), strict=True):
        np.testing.assert_array_equal(slots, expected.numpy())


@pytest.mark.parametrize("opset", [20, 23])
def test_onnx_of_every_option(opset: int, measured: Any, site: Any, random_rows: Any, exported_slots: Any) -> None:
    methods = [
        Method(preset="paper"),
        Method(preset="paper", spatial="lattice", lambdas=(0.0,), score="softmax"),
        Method(score="softmax", features="key", spatial="euclidean", fills=3),
        Method(query="text", attention=(0.0, 0.5)),
    ]
    gates = [method.calibrate(measured(16, (4, 5)), BudgetRequest(keep=(6, 3))).gates[0] for method in methods]
    selectors = [Method.choose(site(gate, 20, (4, 5))) for gate in gates]
    fed = [random_rows(20, seed=7, whole=False) for _ in gates]
    got = exported_slots(selectors, fed, [6] * len(gates), opset)
    for selector, rows, slots in zip(selectors, fed, got.outputs, strict=True):
        np.testing.assert_array_equal(slots, selector(rows).numpy())


def test_padding_gets_no_attention() -> None:
    """The softmax is over the valid rows only: values of padded rows have no effect."""
    quotas = Quotas("disjoint", 2, 2, 3, diversity=0, score="softmax")
    selector = BalancedSelector(quotas, site_of(quotas, 2, (2, 3)))
    rows = rows_of(np.random.default_rng(3), 6, 2, coarse=False)
    mask = rows.attention_mask.clone()
    mask[0, -1] = 0
    loud = rows.read["key"].clone()
    loud[-1, 0] = 1e4
    rows = rows._replace(attention_mask=mask)
    assert selector(rows).tolist() == selector(rows._replace(read={**rows.read, "key": loud})).tolist()


@pytest.mark.parametrize(
    ("selector", "message"),
    [
        ({}, "the constant .merge. is missing"),
        ({"merge": "union", "attention": 2, "over": 2, "early": 2, "depth": 1}, "depth"),
        ({"merge": "sum", "attention": 2, "over": 2, "early": 2}, "use one of union, disjoint"),
        ({"merge": "disjoint", "attention": 2, "over": 2, "early": 2}, "add up to 2, not to 3"),
        ({"merge": "union", "attention": 2, "over": 1, "early": 2}, "over 1 of a btp gate must be within 2 and 6"),
        ({"merge": "union", "attention": 4, "over": 4, "early": 2}, "within 0 and 3"),
        ({"merge": "union", "attention": 0, "over": 4, "early": 2}, "all 0"),
        ({"merge": "union", "attention": 2, "over": 4, "early": 2, "diversity": 2}, "add up to more than 3"),
        ({"merge": "union", "attention": 1, "over": 4, "early": 2, "fills": 9}, "fills 9"),
    ],
)
def test_bad_selector_block(selector: dict[str, Any], message: str, site: Any) -> None:
    with pytest.raises(BadSchedule, match=message):
        Method.choose(site(Gate(3, 3, selector=selector), 6, (2, 3)))
