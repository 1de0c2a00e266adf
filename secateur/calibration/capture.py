# SPDX-License-Identifier: Apache-2.0
"""Run a model over calibration samples and measure what the methods ask for (BTP, arXiv 2505.22038, section 4.3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.calibration.samples import Sample
from secateur.calibration.statistics import Statistics
from secateur.models import _attention
from secateur.models.base import Family
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer


@torch.inference_mode()
def capture(
    family: Family,
    samples: Sequence[Sample],
    wanted: frozenset[str],
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Statistics:
    """Prefill each sample once, unpruned; `wanted` holds "similarity" and "attention".

    An empty `wanted` runs nothing. Deterministic; `seed` is only noted (it chose the samples).
    """
    layout, dimensions = family.layout, family.dimensions
    count = len(samples) if wanted else 0
    similarity = np.zeros((dimensions.layers, count if "similarity" in wanted else 0, layout.vision_tokens), np.float32)
    attention = np.zeros((dimensions.layers, count if "attention" in wanted else 0), np.float32)
    tokenizer = Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))
    vision, projector = family.vision(), family.projector()
    for i in range(count):
        pixels = torch.from_numpy(pixel_values(samples[i].image, family.preprocess))
        hidden_states = _embed(family, projector(vision(pixels)), tokenizer.first(samples[i].question))
        for layer, before, after, share in _layers(family, hidden_states):
            if "similarity" in wanted:
                similarity[layer, i] = F.cosine_similarity(before.float(), after.float(), dim=-1).numpy()
            if "attention" in wanted:
                attention[layer, i] = share
        progress(i + 1, count)
    return Statistics(family.identity, dimensions, layout, count, seed, similarity, attention)


def _embed(family: Family, vision_tokens: Tensor, tail: Sequence[int]) -> Tensor:
    """Prompt rows [1, S, D]: head, image, question."""
    embed = family.decoder.embed
    head, rest = (embed(torch.tensor([ids])) for ids in (list(family.prompt.head), list(tail)))
    return torch.cat([head, vision_tokens, rest], dim=1)


def _layers(family: Family, hidden_states: Tensor) -> list[tuple[int, Tensor, Tensor, float]]:
    """Per decoder layer: its number, vision rows [N, D] before and after it, and the attention they get."""
    decoder, layout = family.decoder, family.layout
    rows = hidden_states.shape[1]
    image = slice(layout.image_start, layout.image_start + layout.vision_tokens)
    position_ids = torch.arange(rows)[None]
    mask = _attention.causal_mask(torch.ones(1, rows), rows, 0, hidden_states.dtype)
    position_embeddings = decoder.rotary(hidden_states, position_ids)
    measured = []
    with _attention.active(decoder.config):
        for number, layer in enumerate(decoder.layers):
            tap = _attention.Tap()
            before = hidden_states
            hidden_states = _attention.run_layer(layer, before, mask, position_ids, position_embeddings, tap)
            share = _attention_to(image, tap, number)
            measured.append((number, before[0, image], hidden_states[0, image], share))
    return measured


def _attention_to(columns: slice, tap: _attention.Tap, layer: int) -> float:
    """Softmax attention of the last row to `columns`, summed over them, mean over heads."""
    assert tap.query is not None
    query = tap.query[0, :, -1].float()  # [H, dh]
    key = tap.rows[layer][0][:, 0].float()  # [S, Hkv, dh]
    key = key.repeat_interleave(query.shape[0] // key.shape[1], dim=1)
    weights = torch.softmax(torch.einsum("hd,shd->hs", query, key) / query.shape[-1] ** 0.5, dim=-1)
    return float(weights[:, columns].sum(dim=-1).mean())
