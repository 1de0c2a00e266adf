# SPDX-License-Identifier: Apache-2.0
"""Decoder segments: a run of layers whose `forward` signature is the ONNX interface.

    hidden_states   [B, S, D]            past_key.l, past_value.l  [P, B, Hkv, dh], each layer l of the segment
    position_ids    [B, S]     int64     last_index                [B] int64
    attention_mask  [B, P + S] int64

    -> hidden_states [B, S, D] or, from the last segment, logits [B, V] fp32 of row last_index
       new_key.l, new_value.l [S, B, Hkv, dh];  query, text_query [B, H, dh] where a gate asks for them

The same graph serves prefill (P = 0), decode (S = 1) and a follow-up question (both above 0).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.models import _attention
from secateur.models.base import Decoder


class Segment(nn.Module):
    """Layers [first, end) of a decoder.

    queries     which queries of the last layer to return, for the gate behind: of "query", "text_query"
    tail_start  original position of the first row behind the image: the question's rows are those from here on
    """

    def __init__(
        self,
        decoder: Decoder,
        first: int,
        end: int,
        queries: tuple[str, ...] = (),
        tail_start: int = 0,
        decomposed: bool = False,
    ) -> None:
        super().__init__()
        self.config = decoder.config
        self.first = first
        self.layers = nn.ModuleList(list(decoder.layers)[first:end])
        self.rotary = decoder.rotary
        self.is_last = end == len(decoder.layers)
        if self.is_last:
            self.norm, self.head = decoder.norm, decoder.head
        self.queries = queries
        self.tail_start = tail_start
        self.decomposed = decomposed

    def forward(
        self, hidden_states: Tensor, position_ids: Tensor, attention_mask: Tensor, last_index: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        indices = range(self.first, self.first + len(self.layers))
        tap = _attention.Tap(
            past={layer: (past[2 * i], past[2 * i + 1]) for i, layer in enumerate(indices)}, decomposed=self.decomposed
        )
        mask = _attention.causal_mask(attention_mask, hidden_states.shape[1], past[0].shape[0], hidden_states.dtype)
        position_embeddings = self.rotary(hidden_states, position_ids)
        with _attention.active(self.config):
            for layer in self.layers:
                hidden_states = _attention.run_layer(layer, hidden_states, mask, position_ids, position_embeddings, tap)
        rows = [x for layer in indices for x in tap.rows[layer]]
        first = self._logits(hidden_states, last_index) if self.is_last else hidden_states
        return (first, *rows, *self._queries(tap.query, position_ids, attention_mask, last_index))

    def _logits(self, hidden_states: Tensor, last_index: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(_row(hidden_states, last_index)))
        return logits.to(torch.float32)

    def _queries(
        self, query: Tensor | None, position_ids: Tensor, attention_mask: Tensor, last_index: Tensor
    ) -> list[Tensor]:
        assert query is not None
        rows = query.transpose(1, 2)  # [B, S, H, dh]
        out = []
        if "query" in self.queries:
            out.append(_row(rows, last_index))
        if "text_query" in self.queries:
            current = attention_mask[:, attention_mask.shape[1] - rows.shape[1] :]
            question = ((position_ids >= self.tail_start) & (current != 0)).to(torch.float32)
            share = question / question.sum(dim=1, keepdim=True).clamp(min=1)
            out.append((rows.to(torch.float32) * share[:, :, None, None]).sum(dim=1).to(rows.dtype))
        return out


def _row(rows: Tensor, index: Tensor) -> Tensor:
    """rows [B, S, ...], index [B] -> [B, ...]: one row of each sample."""
    flat = rows.reshape(-1, *rows.shape[2:])
    return flat.index_select(0, index + torch.arange(rows.shape[0], device=rows.device) * rows.shape[1])
