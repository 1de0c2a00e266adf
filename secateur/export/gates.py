# SPDX-License-Identifier: Apache-2.0
"""Gates: a method chooses vision tokens, and rows, positions, masks and indices follow. Written once for all methods.

    hidden_states [B, S, D], position_ids [B, S], attention_mask [B, S], vision_index [B, N]
    and what the selector reads: query or text_query [B, H, dh], new_key.l [S, B, Hkv, dh] of the layer before
    -> the first four without the dropped rows: [B, S - N + k, ...], vision_index [B, k]

Rows keep their order and their original positions, so the plain lower triangle stays the right causal mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.methods.base import GateInputs, GateSite, Selector


class Prune(nn.Module):
    """One gate; N, k and the start of the image are constants of the graph."""

    def __init__(self, selector: Selector, site: GateSite) -> None:
        super().__init__()
        self.selector = selector
        self.start = site.image_start
        self.before = site.vision_tokens
        self.keep = site.gate.keep

    def forward(
        self, hidden_states: Tensor, position_ids: Tensor, attention_mask: Tensor, vision_index: Tensor, *scored: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        given = list(scored)
        query = given.pop(0) if self.selector.query else None
        key = given.pop(0) if self.selector.key else None
        vision = self._vision(hidden_states)
        slots = self.selector(GateInputs(vision, vision_index, attention_mask, query, key))
        return (
            self._without(hidden_states, _gather(vision, slots)),
            self._without(position_ids, _gather(self._vision(position_ids), slots)),
            self._without(attention_mask, _gather(self._vision(attention_mask), slots)),
            _gather(vision_index, slots),
        )

    def _vision(self, rows: Tensor) -> Tensor:
        """The vision rows [B, N, ...] of [B, S, ...]."""
        return rows[:, self.start : self.start + self.before]

    def _without(self, rows: Tensor, kept: Tensor) -> Tensor:
        """[B, S, ...] with the kept rows [B, k, ...] in the place of all vision rows."""
        return torch.cat([rows[:, : self.start], kept, rows[:, self.start + self.before :]], dim=1)


def _gather(rows: Tensor, slots: Tensor) -> Tensor:
    """rows [B, N, ...] at slots [B, k] -> [B, k, ...], as one plain Gather of whole rows."""
    if slots.shape[1] == 0:
        return rows[:, :0]
    batch, count = rows.shape[:2]
    offset = torch.arange(batch, device=rows.device)[:, None] * count
    flat = rows.reshape(batch * count, *rows.shape[2:]).index_select(0, (slots + offset).reshape(-1))
    return flat.reshape(batch, slots.shape[1], *rows.shape[2:])
