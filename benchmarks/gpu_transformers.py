# SPDX-License-Identifier: Apache-2.0
"""The contenders of our segments in benchmarks/gpu.py: transformers with sdpa, and a patch of it that does FastV.

FastV (arXiv 2403.06764): before layer K, the vision tokens are ranked by the attention that the last row pays them in
layer K - 1, and the rows of the others leave the hidden states. This patch is written from that sentence; it computes
the attention of the last row alone, so it costs less than the map of all rows in the authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.gpu_models import Workload
from secateur.bundle.schedule import FULL


class Transformers:
    """transformers' own forward, with sdpa and its growing cache, not pruned."""

    name, schedule = "transformers", FULL

    def __init__(self, workload: Workload) -> None:
        self._model: Any = workload.family.model
        self._text: Any = self._model.model.language_model
        self._inputs = workload.inputs
        self._cache: Any = None
        self._token: Any = None
        self._entering: dict[str, Any] = {}
        hook = self._text.register_forward_pre_hook(self._note, with_kwargs=True)
        self._forward(**self._inputs)
        hook.remove()

    def first_token(self) -> Tensor:
        """Run everything from the pixels to the first token [1, 1]."""
        return self._forward(**self._inputs)

    def prefill(self) -> Tensor:
        """Run the decoder on the prompt's rows, and return the first token [1, 1]."""
        out = self._text(**self._entering)
        return self._choose(self._model.lm_head(out.last_hidden_state[:, -1:]), out)

    def step(self) -> Tensor:
        """Run the last token through the decoder, and return the next one [1, 1]."""
        return self._forward(input_ids=self._token, past_key_values=self._cache)

    def rows_per_layer(self) -> list[int]:
        """Return the rows of the prompt in each decoder layer."""
        self.prefill()
        return [int(layer.keys.shape[2]) for layer in self._cache.layers]

    def _forward(self, **inputs: Any) -> Tensor:
        out = self._model(**inputs, use_cache=True, logits_to_keep=1)
        return self._choose(out.logits, out)

    def _choose(self, logits: Tensor, out: Any) -> Tensor:
        self._cache, self._token = out.past_key_values, logits[:, -1].argmax(-1, keepdim=True)
        token: Tensor = self._token
        return token

    def _note(self, _: nn.Module, __: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._entering = {**named, "past_key_values": None, "use_cache": True}


class FastV(Transformers):
    """transformers with FastV's pruning before layer `layer`: `keep` vision tokens stay."""

    name = "FastV patch"

    def __init__(self, workload: Workload, schedule: str, layer: int, keep: int) -> None:
        self.schedule, self._layer, self._keep = schedule, layer, keep
        ((self._start, self._tokens),) = workload.family.layout.spans
        super().__init__(workload)

    def prefill(self) -> Tensor:
        with self._patched():
            return super().prefill()

    def _forward(self, **inputs: Any) -> Tensor:
        with self._patched():
            return super()._forward(**inputs)

    @contextmanager
    def _patched(self) -> Iterator[None]:
        """Within the block, the language model runs `_pruned`."""
        self._text.forward = self._pruned
        try:
            yield
        finally:
            del self._text.forward

    def _pruned(
        self,
        inputs_embeds: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **_: Any,
    ) -> BaseModelOutputWithPast:
        """Run the language model on rows [1, S, D]; a prompt (no cache) is pruned. No row is padding."""
        text, rows = self._text, inputs_embeds
        cache: Any = DynamicCache(config=text.config) if past_key_values is None else past_key_values
        done = cache.get_seq_length()  # of the first layer, which has all rows
        if position_ids is None:
            position_ids = torch.arange(done, done + rows.shape[1], device=rows.device)[None]
        turns, entering = text.rotary_emb(rows, position_ids), rows
        for number, layer in enumerate(text.layers):
            if number == self._layer and not done:
                kept = self._kept(text.layers[number - 1], entering, turns, cache.layers[number - 1].keys)
                rows, turns = rows[:, kept], tuple(x[:, kept] for x in turns)
            entering = rows
            rows = layer(rows, attention_mask=None, position_embeddings=turns, past_key_values=cache, use_cache=True)
        return BaseModelOutputWithPast(last_hidden_state=text.norm(rows), past_key_values=cache)

    def _kept(self, layer: Any, entering: Tensor, turns: tuple[Tensor, Tensor], keys: Tensor) -> Tensor:
        """Return the rows that stay, ascending: all text, and the vision tokens with most attention of the last row.

        entering  [1, S, D] rows before `layer`
        keys      [1, Hkv, S, dh] of `layer`
        """
        attention, last = layer.self_attn, layer.input_layernorm(entering[:, -1:])
        query = attention.q_proj(last).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
        query, _ = apply_rotary_pos_emb(query, query, turns[0][:, -1:], turns[1][:, -1:])
        grouped = query.unflatten(1, (keys.shape[1], -1))  # [1, Hkv, H / Hkv, 1, dh]
        scores = grouped.float() @ keys.float().unsqueeze(2).transpose(3, 4) / math.sqrt(attention.head_dim)
        shares = torch.softmax(scores, dim=-1).mean((1, 2))[0, 0]
        vision = shares[self._start : self._start + self._tokens].topk(self._keep).indices.sort().values
        every = torch.arange(entering.shape[1], device=entering.device)
        return torch.cat([every[: self._start], vision + self._start, every[self._start + self._tokens :]])
