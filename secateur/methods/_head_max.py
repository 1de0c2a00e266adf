# SPDX-License-Identifier: Apache-2.0
"""Attention of many rows at once, the largest over heads: what FitPrune counts (arXiv 2409.10197).

Computed from queries and keys in a side branch, fp32 throughout; probabilities of a fused attention are never read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def head_max(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """Largest attention over heads: softmax(q.k / sqrt(dh)) over the visible rows, [B, R, S] fp32.

    query [B, H, R, dh], key [S, B, Hkv, dh], visible [B, R, S] bool; every row must see at least one.
    """
    heads, width = query.shape[1], query.shape[3]
    kv_heads = key.shape[2]
    grouped = query.float().unflatten(1, (kv_heads, heads // kv_heads))
    logits = grouped @ key.float().permute(1, 2, 3, 0).unsqueeze(2) / math.sqrt(width)
    blocked = torch.finfo(torch.float32).min
    shares = torch.softmax(torch.where(visible.unsqueeze(1).unsqueeze(1), logits, blocked), dim=-1)
    return shares.amax((1, 2))


def causal(rows: Tensor, mask: Tensor) -> Tensor:
    """Which of S rows the rows numbered `rows` [R] see: those up to themselves that `mask` [B, S] calls valid (1)."""
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns <= rows.unsqueeze(1)).unsqueeze(0) & (mask > 0).unsqueeze(1)
