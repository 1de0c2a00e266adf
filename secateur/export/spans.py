# SPDX-License-Identifier: Apache-2.0
"""Where the views stand among the rows that a gate sees. Every number is a constant of the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.methods.base import gather


@dataclass(frozen=True)
class Span:
    """One view: `tokens` of it are alive, from row `start` on; `first` is the index of its first token of all."""

    start: int
    tokens: int
    first: int

    @property
    def rows(self) -> slice:
        return slice(self.start, self.start + self.tokens)


@dataclass(frozen=True)
class Spans:
    """All views of a prompt, in the order of their rows; between them, before and behind them stands text."""

    views: tuple[Span, ...]

    @property
    def tokens(self) -> int:
        return sum(view.tokens for view in self.views)

    def alone(self, rows: Tensor, view: Span) -> Tensor:
        """Rows [B, S, ...] without the other views and the text between them: the view follows the text in front."""
        if len(self.views) == 1:
            return rows
        front, behind = self.views[0].start, self.views[-1].rows.stop
        return torch.cat([rows[:, :front], rows[:, view.rows], rows[:, behind:]], dim=1)

    def index(self, vision_index: Tensor) -> list[Tensor]:
        """Indices [B, n] of each view's tokens among the tokens of that view, from those [B, N] among all."""
        if len(self.views) == 1:
            return [vision_index]
        parts = vision_index.split([view.tokens for view in self.views], dim=1)
        return [part - view.first for part, view in zip(parts, self.views, strict=True)]

    def pick(self, rows: Tensor, slots: Sequence[Tensor]) -> list[Tensor]:
        """Of each view the rows [B, k, ...] at its slots [B, k]."""
        return [gather(rows[:, view.rows], at) for view, at in zip(self.views, slots, strict=True)]

    def replaced(self, rows: Tensor, parts: Sequence[Tensor]) -> Tensor:
        """Rows [B, S, ...] with `parts` [B, k, ...] in the places of the views."""
        pieces, behind = [], 0
        for view, part in zip(self.views, parts, strict=True):
            pieces += [rows[:, behind : view.start], part]
            behind = view.rows.stop
        return torch.cat([*pieces, rows[:, behind:]], dim=1)
