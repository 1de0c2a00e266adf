# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of one Llama-style decoder layer (Llama, Mistral, Qwen2, Qwen3), computed outside the layer.

Norms and rotary embedding are the model's own modules. The caller multiplies by the projection weights, or by other
weights. If the layer soft-caps its scores (Gemma 2), a softmax over these heads (ALVTS) has no cap, see
docs/families.md.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from secateur.checkpoints.streaming import value
from secateur.errors import BadModel


class LlamaProjections(nn.Module):
    """Norm, weights and heads of one layer; B batch, S rows, D width, H / Hkv heads of dh.

    query, key            weights [H * dh, D] and [Hkv * dh, D]: plain tensors, so that a graph without them is small
    query_bias, key_bias  [H * dh] and [Hkv * dh] (Qwen2), or None
    """

    query: Tensor
    key: Tensor
    query_bias: Tensor | None
    key_bias: Tensor | None
    norm: nn.Module
    rotary: nn.Module

    def __init__(self, layer: nn.Module, rotary: nn.Module) -> None:
        """Read the modules of `layer`; `rotary` returns (cos, sin) of positions. Weights are shared, not copied.

        Raises:
            BadModel: it is not a Llama-style layer.
        """
        super().__init__()
        attention = getattr(layer, "self_attn", None)
        for module, name in ((layer, "input_layernorm"), (attention, "q_proj"), (attention, "k_proj")):
            if not isinstance(getattr(module, name, None), nn.Module):
                raise BadModel(
                    f"{type(layer).__name__} has no '{name}': it is not a Llama-style layer; choose another model"
                )
        assert attention is not None
        self.head_dim: int = attention.head_dim
        if abs(attention.scaling * self.head_dim**0.5 - 1) > 1e-6:
            raise BadModel(
                f"{type(layer).__name__} scales its scores by {attention.scaling:g}, not by 1 / sqrt({self.head_dim}); "
                "choose another model"
            )
        self.norm, self.rotary = layer.get_submodule("input_layernorm"), rotary
        self.query_norm = getattr(attention, "q_norm", None) or nn.Identity()
        self.key_norm = getattr(attention, "k_norm", None) or nn.Identity()
        for name, linear in (("query", attention.q_proj), ("key", attention.k_proj)):
            setattr(self, name, value(linear.weight))
            setattr(self, f"{name}_bias", None if linear.bias is None else value(linear.bias))

    def normalize(self, rows: Tensor) -> Tensor:
        """Apply the norm before attention: [B, S, D] -> [B, S, D]; fp32 rows stay fp32 for weights of any dtype."""
        normalized: Tensor = self.norm(rows)
        return normalized

    def heads(self, query: Tensor, key: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return projected rows [B, S, H * dh], [B, S, Hkv * dh] as heads after RoPE: [B, H, S, dh], [B, Hkv, S, dh].

        position_ids [B, S] are the rows' positions; half of a head is rotated against the other half (Llama's RoPE).
        """
        query = self.query_norm(self._split(query)).transpose(1, 2)
        key = self.key_norm(self._split(key)).transpose(1, 2)
        cos, sin = self.rotary(query, position_ids)
        rotated: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, cos, sin)
        return rotated

    def _split(self, rows: Tensor) -> Tensor:
        """[B, S, heads * dh] -> [B, S, heads, dh]"""
        return torch.unflatten(rows, -1, (-1, self.head_dim))
