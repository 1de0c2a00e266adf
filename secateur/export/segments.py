# SPDX-License-Identifier: Apache-2.0
"""Decoder segments: consecutive layers as a module whose `forward` signature is the ONNX interface.

    hidden_states           [B, S, D]         past_key.l, past_value.l  [P, B, Hkv, dh], each layer l of the segment
    rotary_cos, rotary_sin  [B, 1, S, dh]     last_index                [B] int64, for logits and query
    attention_mask          [B, P + S] int64  question_position         [1] int64, for text_query, with
    deepstack.l             [B, S, D]         position_ids              [B, S] int64, with M-RoPE [3, B, S]

    deepstack.l is added after layer l, if the model has such planes (Qwen3-VL)

    -> hidden_states [B, S, D] or, from the last segment, logits [B, V] fp32 of row last_index
       new_key.l, new_value.l [S, B, Hkv, dh]
       and, if a selector of the next gates reads them (selection.selector.Selector), of its last layer
       query, text_query [B, H, dh], queries [S, B, H, dh], layer_input [B, S, D]

The same graph runs prefill (P = 0), decode steps (S = 1) and follow-up questions (both above 0).

cos and sin of the positions come from a graph of their own, once for all segments: if a segment computes them, TensorRT
fuses rotary embedding and KV cache into the attention of its first layer only (docs/tensorrt.md).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from secateur.decoder import attention
from secateur.decoder.pieces import Decoder


class Rotary(nn.Module):
    """cos and sin of rotary positions, in the dtype of the decoder: position_ids -> 2 x [B, 1, S, dh]."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        super().__init__()
        self.rotary, self.dtype = decoder.rotary, dtype

    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.rotary(torch.zeros((), dtype=self.dtype, device=position_ids.device), position_ids)
        return cos.unsqueeze(1), sin.unsqueeze(1)


class Segment(nn.Module):
    """Layers [first, end) of a decoder.

    reads   tensors of the last layer to return, for the next gates
    planes  number of layers of the model that add a DeepStack plane
    """

    def __init__(
        self,
        decoder: Decoder,
        first: int,
        end: int,
        reads: tuple[str, ...] = (),
        decomposed: bool = False,
        planes: int = 0,
    ) -> None:
        super().__init__()
        self.config = decoder.config
        self.first = first
        self.layers = nn.ModuleList(list(decoder.layers)[first:end])
        self.is_last = end == len(decoder.layers)
        if self.is_last:
            self.norm, self.head = decoder.norm, decoder.head
        self.reads = reads
        self.reads_last_row = self.is_last or "query" in reads
        self.decomposed = decomposed
        self.bidirectional = decoder.bidirectional
        self.added = tuple(layer for layer in range(first, end) if layer < planes)

    def forward(
        self, hidden_states: Tensor, cos: Tensor, sin: Tensor, attention_mask: Tensor, *further: Tensor
    ) -> tuple[Tensor, ...]:
        given = iter(further)
        last_index = next(given) if self.reads_last_row else None
        planes = {layer: next(given) for layer in self.added}
        position_ids, question_position = (next(given), next(given)) if "text_query" in self.reads else (None, None)
        indices = range(self.first, self.first + len(self.layers))
        past = {layer: (next(given), next(given)) for layer in indices}
        tap = attention.Tap(past=past, decomposed=self.decomposed)
        rows, past_rows, dtype = hidden_states.shape[1], past[self.first][0].shape[0], hidden_states.dtype
        mask = attention.additive_mask(attention_mask, rows, past_rows, dtype, self.bidirectional)
        position_embeddings = cos.squeeze(1), sin.squeeze(1)
        with attention.active(self.config):
            for number, layer in zip(indices, self.layers, strict=True):
                layer_input = hidden_states
                hidden_states = attention.run_layer(layer, hidden_states, mask, position_embeddings, tap)
                if number in planes:
                    hidden_states = hidden_states + planes[number]
        new = [x for layer in indices for x in tap.rows[layer]]
        first = self._logits(hidden_states, last_index) if self.is_last else hidden_states
        if not self.reads:
            return (first, *new)
        assert tap.query is not None
        queries = tap.query.transpose(1, 2)  # [B, S, H, dh]
        found = {
            "query": lambda: _query(queries, last_index),
            "text_query": lambda: _text_query(queries, position_ids, attention_mask, question_position),
            "queries": lambda: queries.transpose(0, 1),
            "layer_input": lambda: layer_input.clone(),  # an output must not be an input of the graph
        }
        return (first, *new, *(found[name]() for name in self.reads))

    def _logits(self, hidden_states: Tensor, last_index: Tensor | None) -> Tensor:
        logits: Tensor = self.head(self.norm(_row(hidden_states, last_index)))
        return logits.to(torch.float32)


def _query(queries: Tensor, index: Tensor | None) -> Tensor:
    """Return the query [B, H, dh] of one row of each sample: queries [B, S, H, dh], index [B].

    It is chosen with the heads first, as attention reads them. Otherwise TensorRT writes the queries, keys and values
    of a decode step to memory.
    """
    assert index is not None
    heads = queries.transpose(1, 2)
    return heads.gather(2, index[:, None, None, None].expand(-1, heads.shape[1], 1, heads.shape[3])).squeeze(2)


def _text_query(queries: Tensor, position_ids: Tensor | None, attention_mask: Tensor, start: Tensor | None) -> Tensor:
    """Return the mean query [B, H, dh] of the question's rows: those with original position `start` [1] or later."""
    assert position_ids is not None and start is not None
    current = attention_mask[:, attention_mask.shape[1] - queries.shape[1] :]
    position = position_ids if position_ids.dim() == 2 else position_ids[0]
    question = ((position >= start) & (current != 0)).to(torch.float32)
    share = question / question.sum(dim=1, keepdim=True).clamp(min=1)
    return (queries.to(torch.float32) * share[:, :, None, None]).sum(dim=1).to(queries.dtype)


def _row(rows: Tensor, index: Tensor | None) -> Tensor:
    """Return one row of each sample: rows [B, S, ...], index [B] -> [B, ...]."""
    assert index is not None
    flat = rows.reshape(-1, *rows.shape[2:])
    return flat.index_select(0, index + torch.arange(rows.shape[0], device=rows.device) * rows.shape[1])
