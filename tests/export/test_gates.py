# SPDX-License-Identifier: Apache-2.0
"""Gates on prompts of several views against plain numpy: inputs of each selector, and outputs of the gate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.export.gates import EncoderGate, PruneGate, RouteGate
from secateur.export.spans import Spans, ViewSpan
from secateur.selection.selector import Fixed, GateInputs, Selector
from secateur.selection.topk import best
from tests.model_fixtures.gates import Loudest

ROWS, WIDTH = 12, 2
SPANS = Spans((ViewSpan(2, 3, 0), ViewSpan(6, 4, 5)))  # text, 3 of the 5 tokens of a view, text, all 4 of another, text
INDEX = [[0, 2, 3, 5, 6, 7, 8], [1, 2, 4, 5, 6, 7, 8]]
VIEWS = [[2, 3, 4], [6, 7, 8, 9]]
QUOTAS = (2, 1)
Ints = NDArray[np.int64]


def loudest(score: NDArray[Any], keep: int) -> list[int]:
    """Return the expected slots of one sample."""
    return sorted(np.argsort(-score, kind="stable")[:keep].tolist())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def positions(axes: int) -> Tensor:
    """Return positions of two samples; all axes differ."""
    every = torch.stack([torch.arange(ROWS) * (axis + 1) + axis for axis in range(axes)])[:, None].expand(-1, 2, -1)
    return every[0] if axes == 1 else every


def stay(slots: list[list[int]]) -> list[int]:
    """Return the rows of one sample that are kept if `slots` of each view are."""
    kept = {view[slot] for view, chosen in zip(VIEWS, slots, strict=True) for slot in chosen}
    return [row for row in range(ROWS) if row in kept or not any(row in view for view in VIEWS)]


def mask_of_two() -> Tensor:
    mask = torch.ones(2, ROWS, dtype=torch.int64)
    mask[1, ROWS - 1] = 0
    return mask


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("planes", [0, 2])
@pytest.mark.parametrize("reads", [(), ("key", "query", "layer_input")], ids=["alone", "reading"])
def test_prune(axes: int, planes: int, reads: tuple[str, ...]) -> None:
    hidden, mask, where = random(2, ROWS, WIDTH), mask_of_two(), positions(axes)
    added = [random(2, ROWS, WIDTH, seed=10 + i) for i in range(planes)]
    read = {
        "key": random(ROWS, 2, 2, 3, seed=1),
        "query": random(2, 4, 3, seed=2),
        "layer_input": random(2, ROWS, WIDTH, seed=3),
    }
    selectors = [Loudest(keep, reads) for keep in QUOTAS]
    gate = PruneGate(selectors, SPANS, planes)
    assert gate.reads == reads
    given = (hidden, where, mask, torch.tensor(INDEX), *added, *(read[name] for name in reads))
    left, left_where, left_mask, left_index, *left_planes = gate(*given)
    for b in range(2):
        score = hidden[b, :, 0].numpy()
        if reads:
            score = (score + read["key"].numpy().sum((2, 3))[:, b]) * read["query"][b].sum().numpy()
            score = score + read["layer_input"][b].numpy().sum(-1)
        slots = [loudest(score[view], keep) for view, keep in zip(VIEWS, QUOTAS, strict=True)]
        rows = stay(slots)
        assert torch.equal(left[b], hidden[b, rows]) and torch.equal(left_mask[b], mask[b, rows])
        assert torch.equal(left_where[..., b, :], where[..., b, rows])
        assert left_index[b].tolist() == [INDEX[b][s] for s in slots[0]] + [INDEX[b][3 + s] for s in slots[1]]
        assert all(torch.equal(plane[b], whole[b, rows]) for plane, whole in zip(left_planes, added, strict=True))
    for selector, view, first in zip(selectors, VIEWS, (0, 5), strict=True):
        alone, seen = [0, 1, *view, 10, 11], selector.seen
        assert seen is not None and seen.image_start == 2
        assert torch.equal(seen.hidden_states, hidden[:, alone]) and torch.equal(seen.attention_mask, mask[:, alone])
        assert torch.equal(seen.position_ids, where[..., alone])
        count = len(view)
        own = torch.tensor(INDEX)[:, :3] if first == 0 else torch.tensor(INDEX)[:, 3:]
        assert torch.equal(seen.vision_index, own - first) and seen.vision.shape[1] == count


@pytest.mark.parametrize("keep", [((), ()), ((0, 2), ()), ((0, 1, 2), (0, 1, 2, 3))])
@pytest.mark.parametrize("compact", [False, True])
def test_a_constant_choice(keep: tuple[tuple[int, ...], ...], compact: bool) -> None:
    """Keeps no token, no token of one view, and all tokens. Compact positions are the first ones."""
    hidden, where = random(2, ROWS, WIDTH), torch.arange(ROWS).repeat(2, 1) + 1
    gate = PruneGate([Fixed(slots) for slots in keep], SPANS, compact=compact)
    left, left_where, left_mask, index = gate(hidden, where, mask_of_two(), torch.tensor(INDEX))
    rows = stay([list(slots) for slots in keep])
    assert torch.equal(left, hidden[:, rows]) and torch.equal(left_mask, mask_of_two()[:, rows])
    expected = [*range(1, len(rows) + 1)] if compact else [row + 1 for row in rows]
    assert left_where.tolist() == [expected] * 2
    assert index.shape == (2, sum(map(len, keep)))


@pytest.mark.parametrize("planes", [0, 1])
def test_encoder(planes: int) -> None:
    """Features have vision tokens only: a view of 5 and one of 4, in a batch of two images."""
    features, scores = random(2, 9, 3), random(2, 9, seed=1)
    added = [random(2, 9, WIDTH, seed=2)] * planes
    selectors = [Loudest(3, ("received.-2",)), Loudest(1, ("received.-2",))]
    gate = EncoderGate(selectors, Spans((ViewSpan(0, 5, 0), ViewSpan(5, 4, 5))), planes)
    left, index, *left_planes = gate(features, torch.arange(9).repeat(2, 1), *added, scores)
    for b in range(2):
        score = (features[b, :, 0] + scores[b]).numpy()
        chosen = loudest(score[:5], 3) + [5 + slot for slot in loudest(score[5:], 1)]
        assert index[b].tolist() == chosen and torch.equal(left[b], features[b, chosen])
        assert all(torch.equal(plane[b], whole[b, chosen]) for plane, whole in zip(left_planes, added, strict=True))
    first, second = (selector.seen for selector in selectors)
    assert first is not None and second is not None and second.image_start == 0
    assert torch.equal(second.hidden_states, features[:, 5:]) and torch.equal(second.vision_index[0], torch.arange(4))


@pytest.mark.parametrize("axes", [1, 3])
def test_route(axes: int) -> None:
    """Two gates: the second writes the computed rows back and selects again among all tokens.

    A plane is added to the rows that skipped its layer; the others got it there.
    """
    whole = Spans((ViewSpan(2, 3, 0), ViewSpan(6, 4, 3)))
    between = Spans((ViewSpan(2, 2, 0), ViewSpan(5, 1, 3)))
    full, where, mask = random(2, ROWS, WIDTH), positions(axes), mask_of_two()
    plane = random(2, ROWS, WIDTH, seed=4)
    first = RouteGate([Loudest(2), Loudest(1)], whole, None)
    compact, some, valid, index, some_plane = first(full, where, mask, plane)
    slots = [_check_routed(b, full, where, mask, plane, (compact, some, valid, index, some_plane)) for b in range(2)]

    changed, added = compact * 3 + 1, random(2, ROWS, WIDTH, seed=5)
    second = RouteGate([Loudest(2), Loudest(1)], whole, between, skipped=1)
    again, *routed = second(full, changed, index, where, mask, added, plane)
    for b in range(2):
        expected, rows = full[b] + added[b], stay(slots[b])
        expected[rows] = changed[b]
        assert torch.equal(again[b], expected)
        _check_routed(b, again, where, mask, plane, tuple(routed))


def _check_routed(
    b: int, full: Tensor, where: Tensor, mask: Tensor, plane: Tensor, routed: tuple[Tensor, ...]
) -> list[list[int]]:
    """Check the outputs of a routing gate for sample b; returns its slots."""
    compact, some, valid, index, some_plane = routed
    score = full[b, :, 0].numpy()
    slots = [loudest(score[view], keep) for view, keep in zip(VIEWS, QUOTAS, strict=True)]
    rows = stay(slots)
    assert index[b].tolist() == slots[0] + [3 + slot for slot in slots[1]]
    assert torch.equal(compact[b], full[b, rows]) and torch.equal(valid[b], mask[b, rows])
    assert torch.equal(some[..., b, :], where[..., b, rows]) and torch.equal(some_plane[b], plane[b, rows])
    return slots


class Spread(Selector):
    """Keeps the rows farthest from the text's mean and the query, and merges the others' mean into each of them."""

    reads = ("query", "queries", "key", "layer_input")

    def __init__(self, keep: int) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, rows: GateInputs) -> Tensor:
        start, end = rows.image_start, rows.image_start + rows.vision_index.shape[1]
        score = rows.vision[..., 0] - rows.hidden_states[:, end:].mean(dim=(1, 2))[:, None]
        for name, dims in (("queries", (2, 3)), ("key", (2, 3))):
            score = score + rows.read[name].sum(dim=dims).T[:, start:end]
        score = score * rows.read["query"].sum(dim=(1, 2))[:, None] + rows.read["layer_input"][:, start:end].sum(dim=-1)
        where = rows.position_ids if rows.position_ids.dim() == 2 else rows.position_ids[1]
        return best(score + rows.attention_mask.sum(dim=1)[:, None] + where[:, start:end] / 7, self.keep)

    def kept(self, rows: GateInputs) -> tuple[Tensor, Tensor]:
        slots, left = super().kept(rows)
        return slots, left + rows.vision.mean(dim=1, keepdim=True)


@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("keep", [0, 2])
def test_views_with_the_same_selector_are_one_batch(axes: int, keep: int) -> None:
    """A selector shared by several views selects the same tokens as separate ones, and runs once."""
    spans = Spans((ViewSpan(2, 3, 0), ViewSpan(5, 3, 3), ViewSpan(9, 3, 6)))
    asked = []
    shared, own = Spread(keep), [Spread(keep) for _ in range(3)]
    shared.register_forward_pre_hook(lambda _, given: asked.append(given[0].vision_index.shape))
    read = [random(2, 4, 3), random(ROWS, 2, 4, 3, seed=1), random(ROWS, 2, 2, 3, seed=2), random(2, ROWS, 2, seed=3)]
    given = random(2, ROWS, WIDTH, seed=5), positions(axes), mask_of_two(), torch.arange(9).repeat(2, 1), *read
    expected, found = (PruneGate(selectors, spans)(*given) for selectors in (own, [shared] * 3))
    assert asked == [(6, 3)]
    assert all(torch.allclose(one, other) for one, other in zip(found, expected, strict=True))


def test_a_gate_does_not_grow_with_its_views() -> None:
    """With text between the views, as in SmolVLM."""
    sizes = []
    for count in (3, 9):
        spans = Spans(tuple(ViewSpan(2 + 4 * view, 3, 3 * view) for view in range(count)))
        rows, tokens = 4 * count + 4, 3 * count
        given = torch.ones(2, rows, WIDTH), torch.arange(rows).repeat(2, 1), torch.ones(2, rows, dtype=torch.int64)
        selector = Loudest(2)
        gate = PruneGate([selector] * count, spans)
        program = torch.export.export(gate, (*given, torch.arange(tokens).repeat(2, 1)))
        sizes.append(sum(node.op == "call_function" for node in program.graph.nodes))
    assert sizes[0] == sizes[1]
