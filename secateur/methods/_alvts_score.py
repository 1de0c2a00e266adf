# SPDX-License-Identifier: Apache-2.0
"""How important each vision token is to one layer (ALVTS, arXiv 2606.14277, equations 4 to 6)."""

from __future__ import annotations

import torch
from torch import Tensor

SCORES = ("product", "v2v")


def importance(
    query: Tensor, key: Tensor, attention_mask: Tensor, image_start: int, vision_tokens: int, score: str = "product"
) -> Tensor:
    """Attention that a vision token gets from the vision rows, times what it gets from the text rows: [B, N] fp32.

    query [B, H, S, dh], key [B, Hkv, S, dh] post-RoPE, attention_mask [B, S] (1 = valid); the mask is causal. Softmax
    over all rows for each head, then the mean over heads, then sums over the querying rows. Sums and not the means of
    the paper: they differ by a factor, and a product of means would be too small for 16 bits.

    Text before the image sees no vision token, so rows from the image on give the same. Without text behind the image
    the product is zero everywhere; score "v2v" leaves the text out.
    """
    batch, heads, rows, width = query.shape
    kv_heads = key.shape[1]
    grouped = query[:, :, image_start:].float().unflatten(1, (kv_heads, heads // kv_heads)) * width**-0.5
    logits = torch.matmul(grouped, key.float().unsqueeze(2).transpose(-1, -2))  # [B, Hkv, H / Hkv, S', S]
    column, row = (torch.arange(first, rows, device=query.device) for first in (0, image_start))
    visible = (column <= row[:, None]) & (attention_mask[:, None, :] != 0)
    logits = torch.where(visible[:, None, None], logits, torch.finfo(torch.float32).min)
    shares = torch.softmax(logits, dim=-1)[..., image_start : image_start + vision_tokens].mean((1, 2))
    from_vision = shares[:, :vision_tokens].sum(1)
    if score == "v2v":
        return from_vision
    asking = attention_mask[:, image_start + vision_tokens :, None].to(torch.float32)
    return from_vision * (shares[:, vision_tokens:] * asking).sum(1)
