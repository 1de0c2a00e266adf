# SPDX-License-Identifier: Apache-2.0
"""Rows of the views among the rows that a gate sees. Every number is a constant of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from secateur.selection.topk import gather


@dataclass(frozen=True)
class ViewSpan:
    """One view: `tokens` tokens left, in rows from `start`; `first` is the vision index of its first original token."""

    start: int
    tokens: int
    first: int

    @property
    def rows(self) -> range:
        return range(self.start, self.start + self.tokens)


@dataclass(frozen=True)
class Spans:
    """All views of a prompt, in the order of their rows; text may come before, between and after them.

    The rows from the first view to the last, with the text between them, are the *region*; it has a fixed size. Views
    of one size are handled together, as V samples per sample of the batch, so the graph does not grow with them.
    """

    views: tuple[ViewSpan, ...]

    @property
    def tokens(self) -> int:
        return sum(view.tokens for view in self.views)

    @property
    def start(self) -> int:
        return self.views[0].start

    @property
    def stop(self) -> int:
        """The first row after the region."""
        return self.views[-1].rows.stop

    @cached_property
    def between(self) -> list[int]:
        """Text rows of the region, counted from its start."""
        vision = {row for view in self.views for row in view.rows}
        return [row - self.start for row in range(self.start, self.stop) if row not in vision]

    def region(self, rows: Tensor) -> Tensor:
        """Return the rows of the region, of rows [B, S, ...]."""
        return rows[:, self.start : self.stop]

    def view_rows(self, rows: Tensor, views: Sequence[int]) -> Tensor:
        """Return the rows [B*V, n, ...] of `views`."""
        if len(self.views) == 1:
            return self.region(rows)
        return self._view_rows(rows, views).flatten(0, 1)

    def text_and_views(self, rows: Tensor, views: Sequence[int]) -> Tensor:
        """Return rows [B*V, S', ...]: the text before the region, one of `views`, the text after the region."""
        if len(self.views) == 1:
            return rows
        before, after = (repeat_for_views(text, len(views)) for text in (rows[:, : self.start], rows[:, self.stop :]))
        return torch.cat([before, self._view_rows(rows, views), after], dim=2).flatten(0, 1)

    def _view_rows(self, rows: Tensor, views: Sequence[int]) -> Tensor:
        """Return the rows [B, V, n, ...] of `views`."""
        wanted = [row - self.start for view in views for row in self.views[view].rows]
        shape = rows.shape[0], len(views), self.views[views[0]].tokens, *rows.shape[2:]
        return take_rows(self.region(rows), wanted).reshape(shape)

    def index(self, vision_index: Tensor, views: Sequence[int]) -> Tensor:
        """Convert indices [B, N] among all tokens to indices [B*V, n] among the tokens of each view."""
        if len(self.views) == 1:
            return vision_index
        places = [place for view in views for place in range(self._tokens_before(view), self._tokens_before(view + 1))]
        first = _constant([self.views[view].first for view in views], vision_index)
        found = take_rows(vision_index, places).reshape(vision_index.shape[0], len(views), self.views[views[0]].tokens)
        return (found - first[:, None]).flatten(0, 1)

    def places(self, slots: Tensor, views: Sequence[int]) -> Tensor:
        """Convert slots [B, V, k] among the tokens of each view to places [B, V*k] among all tokens left."""
        return (slots + _constant([self._tokens_before(view) for view in views], slots)[:, None]).flatten(1)

    def places_to_rows(self, places: Tensor, quotas: Sequence[int]) -> Tensor:
        """Convert places [B, K] among all tokens left, `quotas` of each view, to rows [B, K] within the region."""
        shifts = [view.start - self.start - self._tokens_before(number) for number, view in enumerate(self.views)]
        if not any(shifts):
            return places
        per_token = [shift for shift, quota in zip(shifts, quotas, strict=True) for _ in range(quota)]
        return places + _constant(per_token, places)

    def pick(self, rows: Tensor, at: Tensor) -> Tensor:
        """Return rows [B, K, ...] at the rows `at` [B, K] of the region."""
        return gather(self.region(rows), at)

    def replace_views(self, rows: Tensor, kept: Tensor, quotas: Sequence[int]) -> Tensor:
        """Return rows [B, S, ...] with the views replaced by `kept` [B, K, ...], `quotas` of each view."""
        return torch.cat([rows[:, : self.start], self.merge_with_text(rows, kept, quotas), rows[:, self.stop :]], dim=1)

    def merge_with_text(self, rows: Tensor, kept: Tensor, quotas: Sequence[int]) -> Tensor:
        """Return the region with the views replaced by `kept` [B, K, ...], and the text between them unchanged."""
        if not self.between:
            return kept
        order, texts, tokens = list[int](), 0, len(self.between)
        for view, following, quota in zip(self.views, (*self.views[1:], None), quotas, strict=True):
            order += range(tokens, tokens + quota)
            tokens += quota
            gap = following.start - view.rows.stop if following else 0
            order += range(texts, texts + gap)
            texts += gap
        return take_rows(torch.cat([take_rows(self.region(rows), self.between), kept], dim=1), order)

    def _tokens_before(self, view: int) -> int:
        """Return the number of tokens left in the views before `view`."""
        return sum(before.tokens for before in self.views[:view])


def take_rows(rows: Tensor, wanted: Sequence[int]) -> Tensor:
    """Return the rows [B, n, ...] with the numbers `wanted`; consecutive numbers become a slice."""
    first = wanted[0] if wanted else 0
    if list(wanted) == list(range(first, first + len(wanted))):
        return rows[:, first : first + len(wanted)]
    return rows.index_select(1, _constant(wanted, rows))


def repeat_for_views(rows: Tensor, views: int) -> Tensor:
    """Repeat a tensor [B, ...] for each view: [B, V, ...]."""
    return rows[:, None].expand(-1, views, *(-1 for _ in rows.shape[1:]))


def _constant(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64, device=like.device)
