# SPDX-License-Identifier: Apache-2.0
"""Gates that route: some vision tokens go through the next layers, the others skip them unchanged (ALVTS).

Each routing gate writes the rows computed since the previous gate back into the full stream, selects again among all
tokens, and outputs the compact rows (arXiv 2606.14277, section 3.2).

    full_states [B, S, D]         the full stream at the previous gate
    hidden_states [B, S-N+k', D]  the rows selected by the previous gate, after the layers since then
    vision_index [B, k']          vision indices of these rows
    full_position_ids, full_attention_mask [B, S], full planes [B, S, D]
    -> full_states [B, S, D], hidden_states [B, S-N+k, D], position_ids, attention_mask [B, S-N+k], vision_index [B, k],
       planes [B, S-N+k, D]

The first gate of a schedule has no previous gate: it takes hidden_states [B, S, D] and returns no full_states.
Each view of a prompt is routed separately, with its own quota. With M-RoPE position_ids are [3, B, S].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.export.gates import by_axis, by_row, choose_tokens
from secateur.export.spans import Spans
from secateur.selection.selector import GateInputs, Selector


class RouteGate(nn.Module):
    """A routing gate; all counts are constants of the graph.

    selectors  one per view; views of equal size and settings share one
    spans      the complete views
    before     the views as left by the previous gate; None for the first gate
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
        spans, tokens = self.spans, [view.tokens for view in self.spans.views]

        def given(views: Sequence[int]) -> GateInputs:
            rows, own_mask = (spans.text_and_views(x, views) for x in (full, mask))
            every = torch.arange(tokens[views[0]], device=full.device).expand(rows.shape[0], -1)
            return GateInputs(
                rows, by_axis(spans.text_and_views(by_row(positions), views)), own_mask, every, spans.start, {}
            )

        chosen = choose_tokens(self.each, spans, given)

        def compact(rows: Tensor) -> Tensor:
            return spans.replace_views(rows, spans.pick(rows, chosen.rows), chosen.quotas)

        return (
            compact(full),
            by_axis(compact(by_row(positions))),
            compact(mask),
            chosen.places,
            *(compact(plane) for plane in planes),
        )

    def _put_back(self, full: Tensor, compact: Tensor, index: Tensor, before: Spans) -> Tensor:
        """Write the compact rows back into the full stream, with one ScatterND of whole rows."""
        batch, _, width = full.shape
        spans, quotas = self.spans, [view.tokens for view in before.views]
        numbers = torch.arange(spans.stop, device=full.device).expand(batch, -1)
        rows = spans.merge_with_text(numbers - spans.start, spans.places_to_rows(index, quotas), quotas)
        size = spans.stop - spans.start
        offset = torch.arange(batch, device=full.device)[:, None] * size
        changed = before.region(compact).reshape(-1, width)
        region = spans.region(full).reshape(-1, width).index_put(((rows + offset).reshape(-1),), changed)
        return torch.cat(
            [compact[:, : before.start], region.reshape(batch, size, width), compact[:, before.stop :]], dim=1
        )
