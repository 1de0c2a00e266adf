# SPDX-License-Identifier: Apache-2.0
"""A whole attention map from queries and keys, in a side branch; who scores by it reduces it over heads and rows.

Probabilities of a fused attention are never read.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_map(query: Tensor, key: Tensor, visible: Tensor) -> Tensor:
    """softmax(q.k / sqrt(dh)) over the visible rows, by key head and query head of it: [B, Hkv, H / Hkv, R, S] fp32.

    query [B, H, R, dh], key [B, Hkv, dh, S], visible [B, R, S] bool; every row must see at least one.
    """
    heads, width, kv_heads = query.shape[1], query.shape[3], key.shape[1]
    grouped = query.float().unflatten(1, (kv_heads, heads // kv_heads))
    # Divided behind the product, so that products of whole numbers tie exactly.
    logits = grouped @ key.float().unsqueeze(2) / math.sqrt(width)
    blocked = torch.finfo(torch.float32).min
    return torch.softmax(torch.where(visible[:, None, None], logits, blocked), dim=-1)


def visible(rows: Tensor, mask: Tensor, bidirectional: bool = False) -> Tensor:
    """Which of S rows the rows numbered `rows` [R] see: those that `mask` [B, S] calls valid (1), up to themselves.

    With `bidirectional` those behind them too.
    """
    valid = (mask > 0).unsqueeze(1)
    if bidirectional:
        return valid.expand(-1, rows.shape[0], -1)
    columns = torch.arange(mask.shape[1], device=mask.device)
    return (columns <= rows.unsqueeze(1)).unsqueeze(0) & valid
