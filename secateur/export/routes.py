# SPDX-License-Identifier: Apache-2.0
"""Gates that route: some vision tokens go through the next layers, the others skip them unchanged (ALVTS).

Every such gate puts the rows that the layers behind the gate before it have changed back into the full stream,
chooses anew among all tokens, and hands on the compact rows (arXiv 2606.14277, section 3.2).

    full_states [B, S, D]         the stream as it was when the gate before chose
    hidden_states [B, S-N+k', D]  what the layers since then made of the rows that it chose
    vision_index [B, k']          and which these were
    full_position_ids, full_attention_mask [B, S], full planes [B, S, D]
    -> full_states [B, S, D], hidden_states [B, S-N+k, D], position_ids, attention_mask [B, S-N+k], vision_index [B, k],
       planes [B, S-N+k, D]

The first gate of a schedule has nothing to put back: it takes hidden_states [B, S, D] and returns no full_states.
Every view of a prompt is routed by itself, with a quota of its own. With M-RoPE position_ids are [3, B, S].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.export.gates import by_axis, by_row, choose
from secateur.export.spans import Spans
from secateur.methods.base import GateInputs, Selector


class Route(nn.Module):
    """One gate; all counts are constants of the graph.

    selectors  one for each view, the same one for those that are alike
    spans      the views, whole
    before     what the gate before left of them; None for the first gate
    """

    def __init__(self, selectors: Sequence[Selector], spans: Spans, before: Spans | None) -> None:
        super().__init__()
        self.selectors, self.each = nn.ModuleList(selectors), tuple(selectors)
        self.spans = spans
        self.before = before

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.before is None:
            full, positions, mask, *planes = tensors
            return self._choose(full, positions, mask, planes)
        full, compact, index, positions, mask, *planes = tensors
        full = self._put_back(full, compact, index, self.before)
        return (full, *self._choose(full, positions, mask, planes))

    def _choose(self, full: Tensor, positions: Tensor, mask: Tensor, planes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        spans, given = self.spans, []
        for view in spans.views:
            every = torch.arange(view.tokens, device=full.device).expand(full.shape[0], -1)
            rows, own_mask = (spans.alone(x, view) for x in (full, mask))
            own_positions = by_axis(spans.alone(by_row(positions), view))
            given.append(GateInputs(rows, own_positions, own_mask, every, spans.views[0].start, {}))
        slots, _ = choose(self.each, given)
        index = [chosen + view.first if view.first else chosen for chosen, view in zip(slots, spans.views, strict=True)]
        return (
            self._compact(full, slots),
            by_axis(self._compact(by_row(positions), slots)),
            self._compact(mask, slots),
            torch.cat(index, dim=1),
            *(self._compact(plane, slots) for plane in planes),
        )

    def _compact(self, rows: Tensor, slots: Sequence[Tensor]) -> Tensor:
        """[B, S, ...] with only the vision rows at `slots`."""
        return self.spans.replaced(rows, self.spans.pick(rows, slots))

    def _put_back(self, full: Tensor, compact: Tensor, index: Tensor, before: Spans) -> Tensor:
        """The full stream with the compact rows in their places; a ScatterND of whole rows for each view."""
        batch, _, width = full.shape
        views = []
        for view, left, chosen in zip(self.spans.views, before.views, before.index(index), strict=True):
            offset = torch.arange(batch, device=full.device)[:, None] * view.tokens
            changed = compact[:, left.rows].reshape(-1, width)
            vision = full[:, view.rows].reshape(-1, width).index_put(((chosen + offset).reshape(-1),), changed)
            views.append(vision.reshape(batch, view.tokens, width))
        return before.replaced(compact, views)
