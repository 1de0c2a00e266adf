# SPDX-License-Identifier: Apache-2.0
"""Where the views stand among the rows that a gate sees. Every number is a constant of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from secateur.selection.topk import gather


@dataclass(frozen=True)
class ViewSpan:
    """One view: `tokens` of it are alive, from row `start` on; `first` is the index of its first token of all."""

    start: int
    tokens: int
    first: int

    @property
    def rows(self) -> range:
        return range(self.start, self.start + self.tokens)


@dataclass(frozen=True)
class Spans:
    """All views of a prompt, in the order of their rows; between them, before and behind them stands text.

    The rows from the first view to the last, with the text between them, are the *region*; it has a fixed size. Views
    of one size are handled together, as V samples for each of the batch, so that a graph does not grow with them.
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
        """The row behind the region."""
        return self.views[-1].rows.stop

    @cached_property
    def between(self) -> list[int]:
        """Rows of the region that are text, counted within it."""
        vision = {row for view in self.views for row in view.rows}
        return [row - self.start for row in range(self.start, self.stop) if row not in vision]

    def region(self, rows: Tensor) -> Tensor:
        """That part of rows [B, S, ...]."""
        return rows[:, self.start : self.stop]

    def own(self, rows: Tensor, views: Sequence[int]) -> Tensor:
        """Rows [B*V, n, ...] of each of `views`."""
        if len(self.views) == 1:
            return self.region(rows)
        return self._own(rows, views).flatten(0, 1)

    def alone(self, rows: Tensor, views: Sequence[int]) -> Tensor:
        """[B*V, S', ...]: each of `views` behind the text in front of the region, without the other rows of it."""
        if len(self.views) == 1:
            return rows
        front, behind = (of_each(text, len(views)) for text in (rows[:, : self.start], rows[:, self.stop :]))
        return torch.cat([front, self._own(rows, views), behind], dim=2).flatten(0, 1)

    def _own(self, rows: Tensor, views: Sequence[int]) -> Tensor:
        """Rows [B, V, n, ...] of each of `views`."""
        wanted = [row - self.start for view in views for row in self.views[view].rows]
        shape = rows.shape[0], len(views), self.views[views[0]].tokens, *rows.shape[2:]
        return taken(self.region(rows), wanted).reshape(shape)

    def index(self, vision_index: Tensor, views: Sequence[int]) -> Tensor:
        """Indices [B*V, n] of the tokens of each view among those of that view, from [B, N] among all."""
        if len(self.views) == 1:
            return vision_index
        places = [place for view in views for place in range(self._place(view), self._place(view + 1))]
        first = _constant([self.views[view].first for view in views], vision_index)
        found = taken(vision_index, places).reshape(vision_index.shape[0], len(views), self.views[views[0]].tokens)
        return (found - first[:, None]).flatten(0, 1)

    def places(self, slots: Tensor, views: Sequence[int]) -> Tensor:
        """Places [B, V*k] among all tokens alive, from those [B, V, k] among the tokens of each view."""
        return (slots + _constant([self._place(view) for view in views], slots)[:, None]).flatten(1)

    def moved(self, places: Tensor, quotas: Sequence[int]) -> Tensor:
        """Rows [B, K] within the region of tokens at `places` [B, K], of which `quotas` are of each view."""
        shifts = [view.start - self.start - self._place(number) for number, view in enumerate(self.views)]
        if not any(shifts):
            return places
        of_each = [shift for shift, quota in zip(shifts, quotas, strict=True) for _ in range(quota)]
        return places + _constant(of_each, places)

    def pick(self, rows: Tensor, at: Tensor) -> Tensor:
        """Rows [B, K, ...] at the rows `at` [B, K] of the region."""
        return gather(self.region(rows), at)

    def replaced(self, rows: Tensor, kept: Tensor, quotas: Sequence[int]) -> Tensor:
        """Rows [B, S, ...] with `kept` [B, K, ...] in the places of the views, `quotas` of each."""
        return torch.cat([rows[:, : self.start], self.among_text(rows, kept, quotas), rows[:, self.stop :]], dim=1)

    def among_text(self, rows: Tensor, kept: Tensor, quotas: Sequence[int]) -> Tensor:
        """`kept` [B, K, ...] and the text between the views: what becomes of the region."""
        if not self.between:
            return kept
        order, texts, tokens = list[int](), 0, len(self.between)
        for view, following, quota in zip(self.views, (*self.views[1:], None), quotas, strict=True):
            order += range(tokens, tokens + quota)
            tokens += quota
            gap = following.start - view.rows.stop if following else 0
            order += range(texts, texts + gap)
            texts += gap
        return taken(torch.cat([taken(self.region(rows), self.between), kept], dim=1), order)

    def _place(self, view: int) -> int:
        """How many tokens are alive in front of a view."""
        return sum(before.tokens for before in self.views[:view])


def taken(rows: Tensor, wanted: Sequence[int]) -> Tensor:
    """Rows [B, n, ...] with the numbers `wanted`; those side by side are a slice."""
    first = wanted[0] if wanted else 0
    if list(wanted) == list(range(first, first + len(wanted))):
        return rows[:, first : first + len(wanted)]
    return rows.index_select(1, _constant(wanted, rows))


def of_each(rows: Tensor, views: int) -> Tensor:
    """What all views have in common: [B, ...] as [B, V, ...]."""
    return rows[:, None].expand(-1, views, *(-1 for _ in rows.shape[1:]))


def _constant(numbers: Sequence[int], like: Tensor) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64, device=like.device)
