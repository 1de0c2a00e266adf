# SPDX-License-Identifier: Apache-2.0
"""Modules and sizes of a Llama-style decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

from secateur.bundle.layout import Dimensions
from secateur.decoder.projections import LlamaProjections
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
            BadModel: it is not a Llama-style layer.
        """
        return LlamaProjections(self.layers[layer], self.rotary)
