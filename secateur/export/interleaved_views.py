# SPDX-License-Identifier: Apache-2.0
"""Gates for views that interleave row by row: tiles placed side by side (LLaVA-NeXT).

A gate expects the rows of a view to be consecutive. So the vision rows are sorted by view before the gate, and after it
back into the order of the prompt, which causal attention needs. The number of rows is a constant of the graph. The
order is a constant too if no token is missing; after an earlier gate it is computed from vision_index. Within a gate
vision_index counts the tokens view by view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from secateur.bundle.layout import Layout
from secateur.export.gates import by_axis, by_row
from secateur.selection.topk import gather, top

ROWLESS = ("query", "text_query")
ROWS_FIRST = ("queries", "new_key")


class TileRun(NamedTuple):
    """Views that interleave: `tokens` tokens left, in rows from `start`, after `first` other vision tokens.

    number  index of their first token among all of the prompt; None if tokens of these views are missing
    """

    start: int
    tokens: int
    first: int
    number: int | None


class InterleavedGate(nn.Module):
    """A gate between two reorderings of the rows: into view order before it, into prompt order after it.

    inputs, outputs  tensor names of the gate (without ".out")
    layout           layout of the prompt; for a gate in the encoder, of one image
    before, after    number of tokens of each view before and after the gate
    compact          renumber the positions of the kept rows without gaps
    """

    by_view: Tensor
    by_prompt: Tensor

    def __init__(
        self,
        gate: nn.Module,
        inputs: Sequence[str],
        outputs: Sequence[str],
        layout: Layout,
        before: Sequence[int],
        after: Sequence[int],
        compact: bool = False,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)
        self.whole = interleaved_runs(layout, [view.tokens for view in layout.views])
        self.before, self.after = interleaved_runs(layout, before), interleaved_runs(layout, after)
        self.compact = compact and "position_ids" in self.inputs  # gates in the encoder have no positions
        tokens = np.concatenate(layout.members)
        self.register_buffer("by_prompt", torch.from_numpy(tokens), persistent=False)
        self.register_buffer("by_view", torch.from_numpy(np.argsort(tokens)), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        found = self._sorted(given, self.before, self.by_view, self.by_prompt)
        left = dict(zip(self.outputs, self.gate(*found.values()), strict=True))
        ordered = self._sorted(left, self.after, self.by_prompt, self.by_view)
        if self.compact:  # positions are a count, so the first ones are those of the kept rows
            ordered["position_ids"] = given["position_ids"][..., : left["position_ids"].shape[-1]]
        return tuple(ordered.values())

    def _sorted(
        self, tensors: Mapping[str, Tensor], alive: Sequence[TileRun], numbers: Tensor, inverse: Tensor
    ) -> dict[str, Tensor]:
        """Return the tensors with vision_index renumbered by `numbers`, and the rows of each run sorted by it.

        alive    runs of the tensors that are not of the full stream
        inverse  inverse permutation of `numbers`
        """
        index = tensors.get("vision_index")
        if index is not None and index.shape[1]:
            index = numbers.index_select(0, index.reshape(-1)).reshape(index.shape)
        every = [_order_in_run(run, inverse, index) for run in self.whole]
        some = [_order_in_run(run, inverse, index) for run in alive]
        found, streams = dict(tensors), dict[bool, Tensor]()
        for name, rows in tensors.items():
            full = name.startswith("full_")
            if name == "vision_index":
                assert index is not None
                within = [run._replace(start=run.first) for run in alive]
                found[name] = _take(index, row_order(index, within, some)) if alive else index
            elif name not in ROWLESS and (self.whole if full else alive):
                if full not in streams:
                    first = _rows_second(name, rows)
                    streams[full] = row_order(first, self.whole, every) if full else row_order(first, alive, some)
                found[name] = _reordered(name, rows, streams[full])
        return found


def interleaved_runs(layout: Layout, kept: Sequence[int]) -> list[TileRun]:
    """Return the runs of views that interleave, with `kept` tokens left of each view.

    A run in which only one view has tokens left is in order already, and left out.
    """
    found, first, number, counts = list[TileRun](), 0, 0, iter(kept)
    for (start, tokens), run in zip(layout.pruned(tuple(kept)), layout.runs, strict=True):
        every = sum(view.tokens for view in run)
        if sum(count > 0 for count in islice(counts, len(run))) > 1:
            found.append(TileRun(start, tokens, first, number if tokens == every else None))
        first, number = first + tokens, number + every
    return found


def row_order(rows: Tensor, runs: Sequence[TileRun], orders: Sequence[Tensor]) -> Tensor:
    """Return the new order of rows [B, S, ...]: [S] if it is the same for all samples, else [B, S].

    orders  the new order [n] or [B, n] within each run; other rows stay in place
    """
    batch, count = rows.shape[:2]
    pieces, after = [], 0
    for run, order in zip(runs, orders, strict=True):
        pieces += [torch.arange(after, run.start, device=rows.device), order + run.start]
        after = run.start + run.tokens
    pieces.append(torch.arange(after, count, device=rows.device))
    if all(piece.dim() == 1 for piece in pieces):
        return torch.cat(pieces)
    return torch.cat([piece.expand(batch, -1) for piece in pieces], dim=1)


def _reordered(name: str, rows: Tensor, order: Tensor) -> Tensor:
    """Return the tensor called `name` with its rows in `order` [S] or [B, S]."""
    found = _take(_rows_second(name, rows), order)
    if name.startswith(ROWS_FIRST):
        return found.transpose(0, 1)
    return by_axis(found) if name.endswith("position_ids") else found


def _take(rows: Tensor, order: Tensor) -> Tensor:
    """Return rows [B, S, ...] in `order` [S] or [B, S]."""
    return rows.index_select(1, order) if order.dim() == 1 else gather(rows, order)


def _rows_second(name: str, rows: Tensor) -> Tensor:
    """Return the tensor called `name` with its rows on the second axis."""
    if name.startswith(ROWS_FIRST):
        return rows.transpose(0, 1)
    return by_row(rows) if name.endswith("position_ids") else rows


def _order_in_run(run: TileRun, inverse: Tensor, index: Tensor | None) -> Tensor:
    """Return the order that sorts the rows of a run by index: [n] if no token is missing, else [B, n].

    Indices are far below 2**24, so fp32 represents them exactly.
    """
    if run.number is not None:
        return inverse[run.number : run.number + run.tokens] - run.number
    assert index is not None
    return top(-index[:, run.first : run.first + run.tokens].float(), run.tokens)
