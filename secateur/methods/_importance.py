# SPDX-License-Identifier: Apache-2.0
"""How much query rows attend to each vision token, and the correction of their position bias.

Queries against the keys in a side branch; probabilities of a fused attention are never read. fp32 throughout.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from secateur.methods._attention_map import attention_map, visible
from secateur.methods.base import top


def attention_logits(query: Tensor, key: Tensor) -> Tensor:
    """Mean over heads of q.k / sqrt(dh): query [B, H, dh], vision keys [N, B, Hkv, dh] -> [B, N].

    The mean of per-head products is one product of the concatenated heads once the queries that share a key head
    are summed: a single matrix-vector product.
    """
    heads, width = query.shape[1:]
    kv_heads = key.shape[2]
    grouped = query.float().reshape(-1, kv_heads, heads // kv_heads, width).sum(2).flatten(1)
    rows = key.float().flatten(2).transpose(0, 1)
    return torch.matmul(rows, grouped.unsqueeze(-1)).squeeze(-1) / (heads * math.sqrt(width))


def attention_softmax(query: Tensor, key: Tensor, mask: Tensor, start: int, count: int) -> Tensor:
    """Mean over heads of softmax(q.k / sqrt(dh)) over all valid rows, for vision rows [start, start + count): [B, N].

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
    """Attention that vision rows [start, start + count) get on average from every valid row: [B, N].

    queries [S, B, H, dh], key [S, B, Hkv, dh], mask [B, S] (1 = valid). Row r sees the valid rows up to r, or all;
    softmax, then mean over heads and rows. This is one whole attention map, S x S for each head.
    """
    every, valid = torch.arange(mask.shape[1], device=mask.device), mask > 0
    shares = attention_map(queries.permute(1, 2, 0, 3), key.permute(1, 2, 3, 0), visible(every, mask, bidirectional))
    paid = shares[..., start : start + count].mean((1, 2)) * valid.unsqueeze(2)
    return paid.sum(1) / valid.sum(1, keepdim=True)


def rebalance(score: Tensor, quota: int, over: int, early: int) -> Tensor:
    """The `quota` winners [B, quota] among the `over` best scores, slots below `early` first, each part by score.

    Exact and static form of arXiv 2505.22038, equations 8 to 10: one key orders the candidates by part, then rank.
    """
    best = top(score, over)
    if over == quota:
        return best
    rank = torch.arange(over, 0, -1, dtype=torch.float32, device=score.device)
    return best.gather(1, top(rank + over * (best < early).float(), quota))
