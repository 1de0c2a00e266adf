# SPDX-License-Identifier: Apache-2.0
"""Modules and sizes of a Llama-style decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from secateur.bundle.layout import Dimensions
from secateur.checkpoints.streaming import value
from secateur.decoder import attention
from secateur.errors import BadModel

ROPE_TYPES = ("default", "linear", "llama3", "yarn", "mrope")


def decoder(text: Any, head: nn.Module, bidirectional: bool = False) -> Decoder:
    """Return the modules of `text`, a language model of transformers without its head."""
    return Decoder(text.config, text.embed_tokens, text.layers, text.rotary_emb, text.norm, head, bidirectional)


def dimensions(text: Any, vision_width: int, **further: Any) -> Dimensions:
    """Return the sizes of the decoder with configuration `text`; `further` are other fields of `Dimensions`.

    Raises:
        BadModel: its rotary positions depend on the length of the prompt.
    """
    rope = (text.rope_parameters or {}).get("rope_type", "default")
    if rope not in ROPE_TYPES:
        raise BadModel(f"rotary type '{rope}' depends on the prompt's length; supported: {', '.join(ROPE_TYPES)}")
    heads = text.num_attention_heads
    windowed = getattr(text, "use_sliding_window", True)
    window = (getattr(text, "sliding_window", None) if windowed else None) or text.max_position_embeddings
    return Dimensions(
        layers=text.num_hidden_layers,
        width=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        mlp_width=text.intermediate_size,
        vocabulary=text.vocab_size,
        context=min(text.max_position_embeddings, window),  # within the window, attention is plain causal
        vision_width=vision_width,
        **further,
    )


class Scaled(nn.Module):
    """Multiply the rows of a module by a factor."""

    def __init__(self, module: nn.Module, factor: float) -> None:
        super().__init__()
        self.module, self.factor = module, factor

    def forward(self, given: Tensor) -> Tensor:
        rows: Tensor = self.module(given)
        return rows * self.factor


def scaled(module: nn.Module, factor: float) -> nn.Module:
    """Return `module` with its rows multiplied by `factor`; itself if that is 1."""
    return module if factor == 1 else Scaled(module, factor)


@dataclass(frozen=True)
class Decoder:
    """Modules of the language model, named as in transformers' decoder-only classes.

    bidirectional  rows of a prompt attend to later rows too
    """

    config: PreTrainedConfig
    embed: nn.Module
    layers: nn.ModuleList
    rotary: nn.Module
    norm: nn.Module
    head: nn.Module
    bidirectional: bool = False

    def projections(self, layer: int) -> LlamaProjections:
        """Return norm, query and key projections of decoder layer `layer`.

        Raises:
            BadModel: it is not a Llama-style layer, or it turns its queries or keys in another way.
        """
        made = LlamaProjections(self.layers[layer], self.rotary)
        self._compare(made, self.layers[layer])
        return made

    @torch.no_grad()
    def _compare(self, projections: LlamaProjections, layer: nn.Module) -> None:
        """Check on a few rows that `projections` gives the queries and keys that the layer itself computes."""
        dtype, tap = projections.query.dtype, attention.Tap()
        rows = torch.randn(1, 3, self.config.hidden_size, generator=torch.Generator().manual_seed(0)).to(dtype)
        positions = torch.arange(3)[None]
        mask = attention.additive_mask(torch.ones(1, 3), 3, 0, dtype)
        with attention.active(self.config):
            attention.run_layer(layer, rows, mask, self.rotary(rows, positions), tap)
        assert tap.query is not None
        (key, _), normalized = next(iter(tap.rows.values())), projections.normalize(rows)
        try:
            found = projections.heads(
                F.linear(normalized, projections.query, projections.query_bias),
                F.linear(normalized, projections.key, projections.key_bias),
                positions,
            )
            close = all(
                torch.allclose(a.float(), b.float(), rtol=0, atol=0.02 * float(b.abs().max()))
                for a, b in zip(found, (tap.query, key.permute(1, 2, 0, 3)), strict=True)
            )
        except RuntimeError:  # other shapes
            close = False
        if not close:
            raise BadModel(
                f"{type(layer).__name__} computes its queries and keys in another way than Llama's; choose another "
                "method, which does not compute them itself"
            )


class LlamaProjections(nn.Module):
    """Queries and keys of one Llama-style layer (Llama, Mistral, Qwen2, Qwen3), computed outside the layer.

    Norms and rotary embedding are the model's own modules; the caller multiplies by these weights or by others. If the
    layer soft-caps its scores (Gemma 2), a softmax over these heads (ALVTS) has no cap, see docs/families.md. B batch,
    S rows, D width, H / Hkv heads of dh.

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


class MRope(nn.Module):
    """Rotary positions with three axes (M-RoPE), equal to those of `rotary`, a Qwen-VL decoder's, in few operators.

    Each frequency follows one axis: time, row or column of an image. transformers splices or scatters three tables of
    angles; here the choice is a constant factor of 0 or 1, and the sum of one angle and two zeros is exact.
    """

    frequencies: Tensor

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        source: Any = rotary
        self.scaling: float = source.attention_scaling
        half = source.inv_freq.shape[0]
        axes = torch.arange(3.0)[:, None, None, None].repeat(1, 1, 1, half)
        follows = source.recomposition_frequencies(axes)[0, 0, :half]
        chosen = follows[None] == torch.arange(3)[:, None]
        self.register_buffer("frequencies", (chosen * source.inv_freq.float())[:, None, None], persistent=False)

    def forward(self, rows: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [3, B, S], or [B, S] if equal on all axes -> cos and sin [B, S, dh] in the dtype of `rows`."""
        angles = (position_ids[..., None].float() * self.frequencies).sum(0)
        both = torch.cat([angles, angles], dim=-1)
        return (both.cos() * self.scaling).to(rows.dtype), (both.sin() * self.scaling).to(rows.dtype)
