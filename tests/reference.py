# SPDX-License-Identifier: Apache-2.0
"""The plain oracle: transformers' own layers and attention, all rows kept, dropped tokens masked from a layer on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from secateur.models.base import Family


@dataclass(frozen=True)
class Seen:
    """A masked run: logits [S, V]; per layer the rows [1, S, D] entering it, and its post-RoPE queries and keys."""

    logits: NDArray[np.float32]
    before: list[Tensor]
    query: list[Tensor]
    key: list[Tensor]


def masked_logits(
    family: Family, pixels: NDArray[np.float32], tokens: Sequence[int], kept: Mapping[int, Sequence[int]]
) -> NDArray[np.float32]:
    """Logits [S, V] of `masked_run`."""
    return masked_run(family, pixels, tokens, kept).logits


@torch.inference_mode()
def masked_run(
    family: Family, pixels: NDArray[np.float32], tokens: Sequence[int], kept: Mapping[int, Sequence[int]]
) -> Seen:
    """Head, image, `tokens`; from layer l on only the original vision tokens kept[l] are seen.

    A dropped row is still computed, but nobody attends to it: gathering with original positions is the same.
    """
    text: Any = family.decoder
    layout = family.layout
    end = layout.image_start + layout.vision_tokens
    vision = family.projector()(family.vision()(torch.from_numpy(pixels)))
    head, tail = (text.embed(torch.tensor([list(ids)], dtype=torch.long)) for ids in (family.prompt.head, tokens))
    hidden: Tensor = torch.cat([head, vision, tail], dim=1)
    rows = hidden.shape[1]
    positions = torch.arange(rows)[None]
    rotary = text.rotary(hidden, positions)
    alive = torch.ones(rows, dtype=torch.bool)
    before, queries, keys = [], [], []
    for number, layer in enumerate(text.layers):
        if number in kept:
            alive = torch.ones(rows, dtype=torch.bool)
            alive[layout.image_start : end] = False
            alive[layout.image_start + torch.tensor(list(kept[number]), dtype=torch.long)] = True
        visible = torch.ones(rows, rows).tril().bool() & alive[None, :]
        visible |= torch.eye(rows, dtype=torch.bool)  # a dropped row sees itself, so that it stays finite
        before.append(hidden)
        query, key = _heads(layer, hidden, rotary)
        queries.append(query)
        keys.append(key)
        mask = torch.zeros(rows, rows).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        hidden = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
    logits: NDArray[np.float32] = text.head(text.norm(hidden))[0].float().numpy()
    return Seen(logits, before, queries, keys)


def _heads(layer: Any, hidden: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
    """Post-RoPE queries [1, H, S, dh] and keys [1, Hkv, S, dh] of a Llama layer, spelled out."""
    attention = layer.self_attn
    rows = layer.input_layernorm(hidden)
    split = (*rows.shape[:2], -1, attention.head_dim)
    query, key = (p(rows).view(split).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, *rotary)
    return turned
