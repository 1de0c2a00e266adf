# SPDX-License-Identifier: Apache-2.0
"""How important each vision token is to one layer (ALVTS, arXiv 2606.14277, equations 4 to 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from secateur.selection.attention import attention_map, visible

SCORES = ("product", "v2v")


def importance(
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor,
    image_start: int,
    vision_tokens: int,
    score: str = "product",
    bidirectional: bool = False,
) -> Tensor:
    """Attention that a vision token gets from the vision rows, times what it gets from the text rows: [B, N] fp32.

    query [B, H, S, dh], key [B, Hkv, S, dh] post-RoPE, attention_mask [B, S] (1 = valid); causal unless
    `bidirectional`. Softmax over all rows for each head, then the mean over heads, then sums over the querying rows.
    Sums and not the means of the paper: they differ by a factor, and a product of means would be too small for 16 bits.

    Text before the image counts for nothing; where the mask is causal it sees no vision token anyway. Without text
    behind the image the product is zero everywhere; score "v2v" leaves the text out.
    """
    rows = torch.arange(image_start, query.shape[2], device=query.device)
    seen = visible(rows, attention_mask, bidirectional)
    shares = attention_map(query[:, :, image_start:], key.transpose(-1, -2), seen)
    shares = shares[..., image_start : image_start + vision_tokens].mean((1, 2))
    from_vision = shares[:, :vision_tokens].sum(1)
    if score == "v2v":
        return from_vision
    asking = attention_mask[:, image_start + vision_tokens :, None].to(torch.float32)
    return from_vision * (shares[:, vision_tokens:] * asking).sum(1)
