# SPDX-License-Identifier: Apache-2.0
"""Gates that drop tokens: a method chooses, and rows, positions, masks and indices follow. Once for all methods.

Prune, between two segments
    hidden_states [B, S, D], position_ids [B, S], attention_mask [B, S], vision_index [B, N], what the selector reads
    -> the first four without the dropped rows: [B, S - N + k, ...], vision_index [B, k]
Encoder, behind the vision encoder
    features [B, N, Dv], vision_index [B, N], what the selector reads
    -> features [B, k, Dv], vision_index [B, k]

Rows keep their order and, unless positions are compact, their original positions, so the plain lower triangle stays
the right causal mask.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.methods.base import GateInputs, GateSite, Selector, gather


class Prune(nn.Module):
    """A gate in the decoder; N, k and the start of the image are constants of the graph.

    With `compact` positions the rows that stay are counted anew: the kept tokens follow each other, and what stands
    behind the image moves up.
    """

    def __init__(self, selector: Selector, site: GateSite, compact: bool = False) -> None:
        super().__init__()
        self.selector = selector
        self.start = site.image_start
        self.before = site.vision_tokens
        self.keep = site.gate.keep
        self.compact = compact

    def forward(
        self, hidden_states: Tensor, position_ids: Tensor, attention_mask: Tensor, vision_index: Tensor, *read: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        named = dict(zip(self.selector.reads, read, strict=True))
        rows = GateInputs(hidden_states, position_ids, attention_mask, vision_index, self.start, named)
        slots, kept = self.selector.kept(rows)
        return (
            self._without(hidden_states, kept),
            self._positions(position_ids, slots),
            self._without(attention_mask, gather(self._vision(attention_mask), slots)),
            gather(vision_index, slots),
        )

    def _vision(self, rows: Tensor) -> Tensor:
        """The vision rows [B, N, ...] of [B, S, ...]."""
        return rows[:, self.start : self.start + self.before]

    def _without(self, rows: Tensor, kept: Tensor) -> Tensor:
        """[B, S, ...] with the kept rows [B, k, ...] in the place of all vision rows."""
        return torch.cat([rows[:, : self.start], kept, rows[:, self.start + self.before :]], dim=1)

    def _positions(self, position_ids: Tensor, slots: Tensor) -> Tensor:
        if not self.compact:
            return self._without(position_ids, gather(self._vision(position_ids), slots))
        tail = position_ids[:, self.start + self.before :] - (self.before - self.keep)
        return torch.cat([position_ids[:, : self.start + self.keep], tail], dim=1)


class Encoder(nn.Module):
    """A gate between the vision encoder and the projector: each image of the batch keeps k features of its own."""

    def __init__(self, selector: Selector) -> None:
        super().__init__()
        self.selector = selector

    def forward(self, features: Tensor, vision_index: Tensor, *read: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(self.selector.reads, read, strict=True))
        rows = GateInputs(features, vision_index, torch.ones_like(vision_index), vision_index, 0, named)
        slots, kept = self.selector.kept(rows)
        return kept, gather(vision_index, slots)
