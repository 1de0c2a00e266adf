# SPDX-License-Identifier: Apache-2.0
"""Attention maps and scores of vision tokens, computed from queries and keys, and a selector by them. All are fp32.

The model's own attention is one fused operator, whose probabilities cannot be read.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.topk import best, top

QUERIES = ("last", "all")


def attention_map(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """Return softmax(q.k / sqrt(dh)) over the visible rows, query heads grouped by key head: [B, Hkv, H / Hkv, R, S].

    query [B, H, R, dh], key [B, Hkv, dh, S], visible [B, R, S] bool; every row must see at least one.
    """
    heads, width, kv_heads = query.shape[1], query.shape[3], key.shape[1]
    grouped = query.float().unflatten(1, (kv_heads, heads // kv_heads))
    # Divided after the product, so that whole numbers give exactly equal scores.
    logits = grouped @ key.float().unsqueeze(2) / math.sqrt(width)
    blocked = torch.finfo(torch.float32).min
    return torch.softmax(torch.where(visible[:, None, None], logits, blocked), dim=-1)


def visible(rows: Tensor, mask: Tensor, bidirectional: bool = False) -> Tensor:
    """Return which of S rows each of the rows numbered `rows` [R] sees: [B, R, S] bool.

    A row sees the valid rows (1 in `mask` [B, S]) up to itself, with `bidirectional` also those after it.
    """
    valid = (mask > 0).unsqueeze(1)
    if bidirectional:
        return valid.expand(-1, rows.shape[0], -1)
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns <= rows.unsqueeze(1)).unsqueeze(0) & valid


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Return the mean over heads of q.k / sqrt(dh): query [B, H, dh], vision keys [N, B, Hkv, dh] -> [B, N].

    Queries that share a key head are summed first, so that one product of the concatenated heads is enough. It is a
    multiplication and a sum, not a MatMul: that of ONNX Runtime adds up the last rows of an odd number in another
    order, so that identical tokens would not tie.
    """
    heads, width = query.shape[1:]
    kv_heads = key.shape[2]
    grouped = query.float().reshape(-1, kv_heads, heads // kv_heads, width).sum(2).flatten(1)
    rows = key.float().flatten(2).transpose(0, 1)
    return (rows * grouped.unsqueeze(1)).sum(-1) / (heads * math.sqrt(width))


def attention_softmax(query: Tensor, key: Tensor, mask: Tensor, start: int, count: int) -> Tensor:
    """Return the attention of one query to the vision rows [start, start + count): [B, N].

    The mean over heads of softmax(q.k / sqrt(dh)) over all valid rows.
    query [B, H, dh], key [S, B, Hkv, dh], mask [B, S] (1 = valid).
    """
    heads, width = query.shape[1:]
    kv_heads = key.shape[2]
    grouped = query.float().reshape(-1, kv_heads, heads // kv_heads, width)
    logits = grouped @ key.float().permute(1, 2, 3, 0) / math.sqrt(width)
    valid = (mask > 0).unsqueeze(1).unsqueeze(1)
    shares = torch.softmax(torch.where(valid, logits, torch.finfo(torch.float32).min), dim=-1)
    return shares[..., start : start + count].mean((1, 2))


def attention_received(
    queries: Tensor, key: Tensor, mask: Tensor, start: int, count: int, bidirectional: bool = False
) -> Tensor:
    """Return the attention of all valid rows, on average, to the vision rows [start, start + count): [B, N].

    queries [S, B, H, dh], key [S, B, Hkv, dh], mask [B, S] (1 = valid). Row r sees the valid rows up to r, or all;
    softmax, then mean over heads and rows. This needs a whole attention map, S x S for each head.
    """
    every, valid = torch.arange(mask.shape[1], device=mask.device), mask > 0
    shares = attention_map(queries.permute(1, 2, 0, 3), key.permute(1, 2, 3, 0), visible(every, mask, bidirectional))
    paid = shares[..., start : start + count].mean((1, 2)) * valid.unsqueeze(2)
    return paid.sum(1) / valid.sum(1, keepdim=True)


def rebalance(score: Tensor, quota: int, over: int, early: int) -> Tensor:
    """Return `quota` of the `over` best scores: slots below `early` first, then the others, each part by score.

    Exact form of arXiv 2505.22038, equations 8 to 10, with static shapes: one key orders the candidates by part, then
    by rank.
    """
    candidates = top(score, over)
    if over == quota:
        return candidates
    rank = torch.arange(over, 0, -1, dtype=torch.float32, device=score.device)
    return candidates.gather(1, top(rank + over * (candidates < early).float(), quota))


class Attended(Selector):
    """Keeps the tokens with the most attention, mean over heads, of the last prompt row or of all rows on average."""

    def __init__(self, site: GateSite, query: str = "last") -> None:
        super().__init__()
        self.keep, self.start, self.tokens = site.gate.keep, site.image_start, site.vision_tokens
        self.reads = ("query" if query == "last" else "queries", "key")
        received = partial(attention_received, bidirectional=site.dimensions.bidirectional)
        self.score = attention_softmax if query == "last" else received

    def forward(self, rows: GateInputs) -> Tensor:
        query, key = rows.read[self.reads[0]], rows.read["key"]
        return best(self.score(query, key, rows.attention_mask, self.start, self.tokens), self.keep)
