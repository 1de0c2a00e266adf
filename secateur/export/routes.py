# SPDX-License-Identifier: Apache-2.0
"""Gates that route: some vision tokens go through the next layers, the others skip them unchanged (ALVTS).

Every such gate puts the rows that the layers behind the gate before it have changed back into the full stream,
chooses anew among all tokens, and hands on the compact rows (arXiv 2606.14277, section 3.2).

    full_states [B, S, D]         the stream as it was when the gate before chose
    hidden_states [B, S-N+k', D]  what the layers since then made of the rows that it chose
    vision_index [B, k']          and which these were
    full_position_ids, full_attention_mask [B, S]
    -> full_states [B, S, D], hidden_states [B, S-N+k, D], position_ids, attention_mask [B, S-N+k], vision_index [B, k]

The first gate of a schedule has nothing to put back: it takes hidden_states [B, S, D] and returns no full_states.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.methods.base import GateInputs, GateSite, Selector, gather


class Route(nn.Module):
    """One gate; all counts are constants of the graph.

    before  vision tokens that the gate before chose; None for the first gate
    """

    def __init__(self, selector: Selector, site: GateSite, before: int | None) -> None:
        super().__init__()
        self.selector = selector
        self.start = site.image_start
        self.tokens = site.vision_tokens
        self.before = before

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.before is None:
            full, positions, mask = tensors
            return self._choose(full, positions, mask)
        full, compact, index, positions, mask = tensors
        full = self._put_back(full, compact, index)
        return (full, *self._choose(full, positions, mask))

    def _choose(self, full: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        every = torch.arange(self.tokens, device=full.device).expand(full.shape[0], -1)
        slots = self.selector(GateInputs(full, positions, mask, every, self.start, {}))
        return (*(self._compact(rows, slots) for rows in (full, positions, mask)), slots)

    def _compact(self, rows: Tensor, slots: Tensor) -> Tensor:
        """[B, S, ...] with only the vision rows at `slots`."""
        end = self.start + self.tokens
        return torch.cat([rows[:, : self.start], gather(rows[:, self.start : end], slots), rows[:, end:]], dim=1)

    def _put_back(self, full: Tensor, compact: Tensor, index: Tensor) -> Tensor:
        """The full stream with the compact rows in their places; as one ScatterND of whole rows."""
        assert self.before is not None
        batch, _, width = full.shape
        vision = full[:, self.start : self.start + self.tokens].reshape(-1, width)
        offset = torch.arange(batch, device=full.device)[:, None] * self.tokens
        changed = compact[:, self.start : self.start + self.before].reshape(-1, width)
        vision = vision.index_put(((index + offset).reshape(-1),), changed).reshape(batch, self.tokens, width)
        return torch.cat([compact[:, : self.start], vision, compact[:, self.start + self.before :]], dim=1)
