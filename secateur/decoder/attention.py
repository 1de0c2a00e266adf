# SPDX-License-Identifier: Apache-2.0
"""Run decoder layers of transformers with our mask and cache, and record the queries, without patching a model.

transformers lets a caller register an attention function (`AttentionInterface`) and passes unknown keyword arguments
of a layer on to it. So a `Tap` is passed as an argument, and a run has no global state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig

from secateur.errors import BadModel

NAME = "secateur"


@dataclass
class Tap:
    """Settings and results of one run of some layers: cached rows, new rows and queries.

    past        per layer index: keys and values [P, B, Hkv, dh] cached earlier, sequence first
    rows        per layer index: this run's keys and values [S, B, Hkv, dh]
    query       [B, H, S, dh] post-RoPE queries of the layer that ran last
    decomposed  compute attention as MatMul and Softmax, for targets without a fused operator
    """

    past: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    decomposed: bool = False
    rows: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    query: Tensor | None = None

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Store the new rows [B, Hkv, S, dh] and return all rows [B, Hkv, P + S, dh]: transformers' cache protocol.

        Rows are joined in the layout of the cache: TensorRT then joins and repeats them inside its attention kernel.
        """
        self.rows[layer] = (key.permute(2, 0, 1, 3), value.permute(2, 0, 1, 3))
        if layer not in self.past:
            return key, value
        pairs = zip(self.past[layer], self.rows[layer], strict=True)
        all_keys, all_values = (torch.cat(pair, dim=0).permute(1, 2, 0, 3) for pair in pairs)
        return all_keys, all_values


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    tap: Tap | None = None,
    **extra: Any,
) -> tuple[Tensor, None]:
    """Grouped-query attention with an additive mask [B, 1, S, P + S]. Returns [B, S, H, dh].

    Raises:
        BadModel: the layer uses an attention feature that is not supported.
    """
    if extra.get("s_aux") is not None:
        raise BadModel("the decoder's attention uses 's_aux', which is not supported; choose another model")
    if tap is not None:
        tap.query = query
    softcap = extra.get("softcap")
    if softcap is not None or (tap is not None and tap.decomposed):
        out = _decomposed(query, key, value, attention_mask, scaling, softcap)
    else:
        out = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scaling, enable_gqa=query.shape[1] != key.shape[1]
        )
    return out.transpose(1, 2).contiguous(), None


def _decomposed(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float, softcap: float | None = None
) -> Tensor:
    """Return attention as MatMul and Softmax; the query is scaled first, as TensorRT's fusion expects.

    `softcap` limits the scores to -softcap .. softcap (Gemma 2), for which torch has no fused operator.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = (_repeat(x, groups) for x in (key, value))
    scores = torch.matmul(query * scaling, key.transpose(2, 3))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores + mask
    return torch.matmul(torch.softmax(scores, dim=-1), value)


def _repeat(x: Tensor, groups: int) -> Tensor:
    batch, heads, rows, width = x.shape
    return x[:, :, None].expand(batch, heads, groups, rows, width).reshape(batch, heads * groups, rows, width)


def run_layer(layer: nn.Module, rows: Tensor, mask: Tensor, position_embeddings: object, tap: Tap) -> Tensor:
    """Run one decoder layer within `active`: rows [B, S, D] -> [B, S, D]; for the mask see `additive_mask`."""
    out: Tensor = layer(
        rows,
        attention_mask=mask,
        position_embeddings=position_embeddings,
        past_key_values=tap,
        tap=tap,
    )
    return out


@contextmanager
def calling(config: PreTrainedConfig, name: str, function: Callable[..., tuple[Tensor, None]]) -> Iterator[None]:
    """Within the block, models of this config call `function` as attention; other models are not affected."""
    AttentionInterface.register(name, function)
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def active(config: PreTrainedConfig) -> AbstractContextManager[None]:
    """Within the block, the decoder of this config calls `attention`."""
    return calling(config, NAME, attention)


def additive_mask(
    attention_mask: Tensor, rows: int, past: int, dtype: torch.dtype, bidirectional: bool = False
) -> Tensor:
    """Return the additive mask [B, 1, rows, past + rows]: row r attends to valid columns up to r + past.

    With `bidirectional` it attends to later columns too: each call is a whole prompt, or one generated row.

    The masked value is finite, so that a row without valid columns gives no NaN and fp16 does not overflow.
    """
    column = torch.arange(past + rows, device=attention_mask.device)
    row = torch.arange(rows, device=attention_mask.device) + past
    valid = attention_mask[:, None, None, :] != 0
    if not bidirectional:
        valid = (column[None, :] <= row[:, None])[None, None] & valid
    blocked = torch.full((), torch.finfo(dtype).min / 2, dtype=dtype, device=attention_mask.device)
    mask = torch.where(valid, torch.zeros((), dtype=dtype, device=attention_mask.device), blocked)
    return mask.expand(-1, -1, rows, -1) if bidirectional else mask
