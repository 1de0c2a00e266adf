# SPDX-License-Identifier: Apache-2.0
"""Gates for views whose lines interleave: tiles that stand side by side (LLaVA-NeXT).

A gate wants the rows of a view side by side. So in front of it the vision rows are put view by view, and behind it back
into the order of the prompt, which causal attention needs. How many rows that concerns is a constant of the graph.
Which of them belongs to which view is one too as long as no token is missing; behind another gate it follows from
vision_index. Within a gate vision_index counts the tokens view by view.
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
    """Views that interleave: `tokens` of them are alive, from row `start` on, behind `first` other vision tokens.

    number  of their first token among all of the prompt; None where tokens of these views are missing
    """

    start: int
    tokens: int
    first: int
    number: int | None


class Woven(nn.Module):
    """The gate `gate`, whose inputs and outputs are called so (without ".out").

    layout         the prompt; for a gate in the encoder one image of it
    before, after  tokens of each view among the rows that the gate finds, and leaves
    compact        count the rows that stay anew
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
        self.whole = runs(layout, [view.tokens for view in layout.views])
        self.before, self.after = runs(layout, before), runs(layout, after)
        self.compact = compact and "position_ids" in self.inputs  # in the encoder there are none to count anew
        tokens = np.concatenate(layout.members)
        self.register_buffer("by_prompt", torch.from_numpy(tokens), persistent=False)
        self.register_buffer("by_view", torch.from_numpy(np.argsort(tokens)), persistent=False)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.inputs, tensors, strict=True))
        found = self._sorted(given, self.before, self.by_view, self.by_prompt)
        left = dict(zip(self.outputs, self.gate(*found.values()), strict=True))
        handed = self._sorted(left, self.after, self.by_prompt, self.by_view)
        if self.compact:  # they count, so the first ones are those of the rows that are left
            handed["position_ids"] = given["position_ids"][..., : left["position_ids"].shape[-1]]
        return tuple(handed.values())

    def _sorted(
        self, tensors: Mapping[str, Tensor], alive: Sequence[TileRun], numbers: Tensor, inverse: Tensor
    ) -> dict[str, Tensor]:
        """The same with each run in the order of the numbers that its tokens have now; `inverse` is that of `numbers`.

        alive  runs of the rows that do not stand for the full stream
        """
        index = tensors.get("vision_index")
        if index is not None and index.shape[1]:
            index = numbers.index_select(0, index.reshape(-1)).reshape(index.shape)
        every = [_places(run, inverse, index) for run in self.whole]
        some = [_places(run, inverse, index) for run in alive]
        found, streams = dict(tensors), dict[bool, Tensor]()
        for name, rows in tensors.items():
            full = name.startswith("full_")
            if name == "vision_index":
                assert index is not None
                within = [run._replace(start=run.first) for run in alive]
                found[name] = _from(index, columns(index, within, some)) if alive else index
            elif name not in ROWLESS and (self.whole if full else alive):
                if full not in streams:
                    first = _rows_second(name, rows)
                    streams[full] = columns(first, self.whole, every) if full else columns(first, alive, some)
                found[name] = _moved(name, rows, streams[full])
        return found


def runs(layout: Layout, kept: Sequence[int]) -> list[TileRun]:
    """Where views interleave, when `kept` tokens of each view are left; one that stands alone is in order."""
    found, first, number, counts = list[TileRun](), 0, 0, iter(kept)
    for (start, tokens), run in zip(layout.pruned(tuple(kept)), layout.runs, strict=True):
        every = sum(view.tokens for view in run)
        if sum(count > 0 for count in islice(counts, len(run))) > 1:
            found.append(TileRun(start, tokens, first, number if tokens == every else None))
        first, number = first + tokens, number + every
    return found


def columns(rows: Tensor, runs: Sequence[TileRun], places: Sequence[Tensor]) -> Tensor:
    """Which of the rows [B, S, ...] comes to each place, in a run that at `places` [n] or [B, n] of it.

    Returns [S] if that is the same for all samples, else [B, S].
    """
    batch, count = rows.shape[:2]
    pieces, behind = [], 0
    for run, at in zip(runs, places, strict=True):
        pieces += [torch.arange(behind, run.start, device=rows.device), at + run.start]
        behind = run.start + run.tokens
    pieces.append(torch.arange(behind, count, device=rows.device))
    if all(piece.dim() == 1 for piece in pieces):
        return torch.cat(pieces)
    return torch.cat([piece.expand(batch, -1) for piece in pieces], dim=1)


def _moved(name: str, rows: Tensor, places: Tensor) -> Tensor:
    """A tensor of this name with its rows taken from `places` [S] or [B, S]."""
    found = _from(_rows_second(name, rows), places)
    if name.startswith(ROWS_FIRST):
        return found.transpose(0, 1)
    return by_axis(found) if name.endswith("position_ids") else found


def _from(rows: Tensor, places: Tensor) -> Tensor:
    """Rows [B, S, ...] from `places` [S] or [B, S]."""
    return rows.index_select(1, places) if places.dim() == 1 else gather(rows, places)


def _rows_second(name: str, rows: Tensor) -> Tensor:
    """A tensor of this name with its rows on the second axis."""
    if name.startswith(ROWS_FIRST):
        return rows.transpose(0, 1)
    return by_row(rows) if name.endswith("position_ids") else rows


def _places(run: TileRun, inverse: Tensor, index: Tensor | None) -> Tensor:
    """Where in a run its rows come from: [n] if none is missing, else [B, n], by rising number.

    Numbers are far below 2**24, so fp32 tells them apart.
    """
    if run.number is not None:
        return inverse[run.number : run.number + run.tokens] - run.number
    assert index is not None
    return top(-index[:, run.first : run.first + run.tokens].float(), run.tokens)
