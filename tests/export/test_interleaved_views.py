# SPDX-License-Identifier: Apache-2.0
"""Gates on views that interleave row by row, against rows selected one by one in plain Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.bundle.layout import Layout, View
from secateur.export.gate_sites import spans
from secateur.export.gates import EncoderGate, PruneGate, RouteGate
from secateur.export.interleaved_views import InterleavedGate
from secateur.export.spans import Spans, ViewSpan
from secateur.selection.selector import GateInputs
from tests.model_fixtures.gates import Loudest

WIDTH, QUESTION, BATCH = 2, 3, 2
ROWS = ["hidden_states", "position_ids", "attention_mask"]
READS = ("key", "query", "layer_input")
Counts = list[int]


class Merging(Loudest):
    """Keeps the same rows, with the mean of the view's rows added."""

    def kept(self, rows: GateInputs) -> tuple[Tensor, Tensor]:
        slots, left = super().kept(rows)
        return slots, left + rows.vision.mean(dim=1, keepdim=True)


@dataclass(frozen=True)
class Case:
    """A prompt: tokens left in each sample (alive), in each view (before), and kept by the gate in each view (keep)."""

    layout: Layout
    alive: list[list[int]]
    before: Counts
    keep: Counts

    @property
    def owner(self) -> dict[int, tuple[int, int]]:
        """View of each token, and index in the view."""
        rows = {row: (v, place) for v, view in enumerate(self.layout.views) for place, row in enumerate(view.rows)}
        return {token: rows[row] for token, row in enumerate(sorted(rows))}

    def rows(self, tokens: Sequence[int]) -> list[int]:
        """Return the token of each row if these tokens are left, -1 for text; the question comes last."""
        at = {token: row for token, row in enumerate(sorted(r for view in self.layout.views for r in view.rows))}
        vision = {at[token]: token for token in tokens}
        text = set(self.layout.text_rows())
        return [vision.get(row, -1) for row in range(self.layout.rows) if row in vision or row in text] + [
            -1
        ] * QUESTION


@st.composite
def cases(draw: st.DrawFn, whole: bool = False) -> Case:
    """Draw runs of one to three views, with text between the runs."""
    side, views, head, row = st.integers(1, 3), list[View](), 0, 0
    for height, widths in draw(st.lists(st.tuples(side, st.lists(side, min_size=1, max_size=3)), max_size=3)):
        gap = draw(st.integers(0, 2))
        row, head = row + gap, head + gap
        for width in widths:
            views.append(View(row, height * width, (height, width), sum(widths) if len(widths) > 1 else 0))
            row += width
        row += (height - 1) * sum(widths)
    views += [View(row, 6, (3, 2), 4), View(row + 2, 6, (3, 2), 4)]
    layout = Layout((9,) * head, tuple(views))
    before = [v.tokens if whole else draw(st.integers(0, v.tokens)) for v in views]
    keep = [draw(st.integers(0, count)) for count in before]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    alive = [_drawn(layout, before, rng) for _ in range(BATCH)]
    return Case(layout, alive, before, keep)


def _drawn(layout: Layout, counts: Counts, rng: np.random.Generator) -> list[int]:
    """Draw `counts` tokens of each view, in ascending order."""
    order = sorted(row for view in layout.views for row in view.rows)
    rows = [rng.choice(view.rows, n, replace=False).tolist() for view, n in zip(layout.views, counts, strict=True)]
    return sorted(order.index(row) for own in rows for row in own)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def loudest(score: Tensor, keep: int) -> list[int]:
    return sorted(np.argsort(-score.numpy(), kind="stable")[:keep].tolist())


def chosen(case: Case, rows: Sequence[int], score: Tensor) -> list[int]:
    """Return the kept rows of one sample: text, and the quota of each view."""
    stay = [row for row, token in enumerate(rows) if token < 0]
    for number, keep in enumerate(case.keep):
        own = [row for row, token in enumerate(rows) if token >= 0 and case.owner[token][0] == number]
        stay += [own[slot] for slot in loudest(score[own], keep)]
    return sorted(stay)


def merged(case: Case, rows: Sequence[int], hidden: Tensor) -> Tensor:
    """Return the rows [S, D] as changed by `Merging.kept`."""
    made = hidden.clone()
    for number in range(len(case.layout.views)):
        own = [row for row, token in enumerate(rows) if token >= 0 and case.owner[token][0] == number]
        if own:
            made[own] = hidden[own] + hidden[own].mean(0)
    return made


@settings(max_examples=60)
@given(cases(), st.sampled_from([(), READS]), st.booleans(), st.sampled_from([1, 3]))
def test_prune(case: Case, reads: tuple[str, ...], compact: bool, axes: int) -> None:
    rows = [case.rows(tokens) for tokens in case.alive]
    count = len(rows[0])
    hidden, plane, mask = random(BATCH, count, WIDTH), random(BATCH, count, WIDTH, seed=1), torch.ones(BATCH, count)
    mask[1, -2:] = 0
    where = torch.arange(count).repeat(axes, BATCH, 1) * torch.arange(1, axes + 1)[:, None, None]
    where = where[0] if axes == 1 or compact else where
    read = {
        "key": random(count, BATCH, 2, 3, seed=2),
        "query": random(BATCH, 4, 3, seed=3),
        "layer_input": random(BATCH, count, WIDTH, seed=4),
    }
    selectors = [Merging(keep, reads) for keep in case.keep]
    names = [*ROWS, "vision_index", "deepstack.0"]
    inputs = [*names, *("new_key.1" if name == "key" else name for name in reads)]
    inner = PruneGate(selectors, spans(case.layout, case.before), 1, compact)
    gate = InterleavedGate(inner, inputs, names, case.layout, case.before, case.keep, compact)
    found = gate(
        hidden, where, mask, torch.tensor(case.alive, dtype=torch.int64), plane, *(read[name] for name in reads)
    )
    left, left_where, left_mask, index, left_plane = found
    for b in range(BATCH):
        score = hidden[b, :, 0]
        if reads:
            score = (score + read["key"][:, b].sum((1, 2))) * read["query"][b].sum() + read["layer_input"][b].sum(-1)
        stay = chosen(case, rows[b], score)
        torch.testing.assert_close(left[b], merged(case, rows[b], hidden[b])[stay])
        assert torch.equal(left_mask[b], mask[b, stay]) and torch.equal(left_plane[b], plane[b, stay])
        assert index[b].tolist() == [rows[b][row] for row in stay if rows[b][row] >= 0]
        assert torch.equal(left_where[..., b, :], where[..., b, : len(stay)] if compact else where[..., b, stay])
        for number, selector in enumerate(selectors):
            own = [row for row, token in enumerate(rows[b]) if token >= 0 and case.owner[token][0] == number]
            alone, seen = [*range(case.layout.image_start), *own, *range(count - QUESTION, count)], selector.seen
            assert seen is not None and torch.equal(seen.hidden_states[b], hidden[b, alone])
            assert torch.equal(seen.attention_mask[b], mask[b, alone])
            assert seen.vision_index[b].tolist() == [case.owner[rows[b][row]][1] for row in own]
            assert torch.equal(seen.position_ids[..., b, :], where[..., b, alone])


@settings(max_examples=30)
@given(cases(whole=True), st.booleans())
def test_encoder(case: Case, compact: bool) -> None:
    """Features have vision tokens only, and no positions, so compact positions change nothing."""
    tokens = case.layout.vision_tokens
    seen = case.layout.features
    features, scores = random(BATCH, tokens, WIDTH), random(BATCH, tokens, seed=1)
    views = [ViewSpan(first, view.tokens, first) for first, view in _consecutive(seen)]
    inner = EncoderGate([Merging(keep, ("received.-2",)) for keep in case.keep], Spans(tuple(views)))
    names = ["features", "vision_index"]
    gate = InterleavedGate(inner, [*names, "received.-2"], names, seen, case.before, case.keep, compact)
    left, index = gate(features, torch.arange(tokens).repeat(BATCH, 1), scores)
    for b in range(BATCH):
        stay = chosen(case, range(tokens), features[b, :, 0] + scores[b])
        assert index[b].tolist() == stay
        torch.testing.assert_close(left[b], merged(case, range(tokens), features[b])[stay])


def _consecutive(layout: Layout) -> list[tuple[int, View]]:
    first, found = 0, []
    for view in layout.views:
        found.append((first, view))
        first += view.tokens
    return found


def _second_quotas(case: Case) -> st.SearchStrategy[tuple[Case, Counts]]:
    return st.tuples(st.just(case), st.tuples(*(st.integers(0, count) for count in case.before)).map(list))


def _similar_runs() -> Case:
    """Return a case where the tokens left of the last two views have the start and length of the previous two."""
    sizes = [(0, (1, 2), 5), (2, (1, 3), 5), (5, (2, 1), 3), (6, (2, 2), 3), (11, (3, 2), 4), (13, (3, 2), 4)]
    views = [View(start, grid[0] * grid[1], grid, stride) for start, grid, stride in sizes]
    return Case(Layout((), tuple(views)), [list(range(23))] * BATCH, [2, 3, 2, 4, 6, 6], [0, 0, 1, 4, 1, 5])


def _none_left() -> Case:
    """Return a case where no view has tokens left, with text between the views."""
    views = View(0, 1, (1, 1), 0), View(2, 6, (3, 2), 4), View(4, 6, (3, 2), 4)
    return Case(Layout((9,), views), [list(range(13))] * BATCH, [1, 6, 6], [0, 0, 0])


@settings(max_examples=40)
@given(cases(whole=True).flatmap(_second_quotas))
@example((_similar_runs(), [0] * 6))
@example((_none_left(), [0] * 3))
def test_route(drawn: tuple[Case, Counts]) -> None:
    """The second gate writes back the rows computed since the first one, and selects among all tokens."""
    case, then = drawn
    rows = [case.rows(tokens) for tokens in case.alive]
    full, plane = random(BATCH, len(rows[0]), WIDTH), random(BATCH, len(rows[0]), WIDTH, seed=1)
    where, mask = torch.arange(len(rows[0])).repeat(BATCH, 1), torch.ones(BATCH, len(rows[0]))
    again = Case(case.layout, case.alive, case.before, then)
    whole, left = spans(case.layout, case.before), spans(case.layout, case.keep)
    given = ["full_position_ids", "full_attention_mask", "full_deepstack.0"]
    ordered = [*ROWS, "vision_index", "deepstack.0"]
    inner = RouteGate([Loudest(keep) for keep in case.keep], whole, None)
    first = InterleavedGate(inner, ["hidden_states", *given], ordered, case.layout, case.before, case.keep)
    compact, *_, index, _ = found = first(full, where, mask, plane)
    _check_routed(case, rows, full, where, plane, found)

    inner = RouteGate([Loudest(keep) for keep in again.keep], whole, left)
    inputs = ["full_states", "hidden_states", "vision_index", *given]
    second = InterleavedGate(inner, inputs, ["full_states", *ordered], case.layout, case.keep, again.keep)
    expected = full.clone()
    for b in range(BATCH):
        stay = chosen(case, rows[b], full[b, :, 0])
        expected[b, stay] = full[b, stay] * 3 + 1
    states, *found = second(full, compact * 3 + 1, index, where, mask, plane)
    torch.testing.assert_close(states, expected)
    _check_routed(again, rows, expected, where, plane, found)


def _check_routed(
    case: Case, rows: list[list[int]], full: Tensor, where: Tensor, plane: Tensor, found: Sequence[Tensor]
) -> None:
    compact, some, valid, index, some_plane = found
    for b in range(BATCH):
        stay = chosen(case, rows[b], full[b, :, 0])
        torch.testing.assert_close(compact[b], full[b, stay])
        assert torch.equal(some[b], where[b, stay]) and torch.equal(some_plane[b], plane[b, stay])
        assert valid[b].tolist() == [1] * len(stay)
        assert index[b].tolist() == [rows[b][row] for row in stay if rows[b][row] >= 0]
