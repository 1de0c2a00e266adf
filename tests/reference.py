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

from secateur import methods, plugins
from secateur.artifacts import ENCODER_GATES, GateRef, Schedule
from secateur.methods.base import GateInputs, GateSite
from secateur.models.base import Family


@dataclass(frozen=True)
class Seen:
    """A masked run: logits [S, V]; per layer the rows [1, S, D] entering it, and its post-RoPE queries and keys."""

    logits: NDArray[np.float32]
    before: list[Tensor]
    query: list[Tensor]
    key: list[Tensor]


def masked_logits(
    family: Family,
    pixels: NDArray[np.float32],
    tokens: Sequence[int],
    kept: Mapping[int, Sequence[int]],
    **how: Any,
) -> NDArray[np.float32]:
    """Logits [S, V] of `masked_run`."""
    return masked_run(family, pixels, tokens, kept, **how).logits


@torch.inference_mode()
def masked_run(
    family: Family,
    pixels: NDArray[np.float32],
    tokens: Sequence[int],
    kept: Mapping[int, Sequence[int]],
    *,
    compact: bool = False,
    route: bool = False,
    vision: Tensor | None = None,
) -> Seen:
    """Head, image, `tokens`; from layer l on only the original vision tokens kept[l] are seen.

    A dropped row is still computed, but nobody attends to it: gathering with original positions is the same.

    compact  from layer l on the rows that are seen count their positions anew
    route    a row that is not seen leaves the layer as it entered it
    vision   [1, k, D] what stands in the place of the vision tokens kept[0]
    """
    text: Any = family.decoder
    layout = family.layout
    end = layout.image_start + layout.vision_tokens
    image = family.projector()(family.vision()(torch.from_numpy(pixels)))
    if vision is not None:
        image = image.index_copy(1, torch.tensor(list(kept[0])), vision)
    head, tail = (text.embed(torch.tensor([list(ids)], dtype=torch.long)) for ids in (family.prompt.head, tokens))
    hidden: Tensor = torch.cat([head, image, tail], dim=1)
    rows = hidden.shape[1]
    alive = torch.ones(rows, dtype=torch.bool)
    before, queries, keys = [], [], []
    for number, layer in enumerate(text.layers):
        if number in kept:
            alive = torch.ones(rows, dtype=torch.bool)
            alive[layout.image_start : end] = False
            alive[layout.image_start + torch.tensor(list(kept[number]), dtype=torch.long)] = True
        positions = (alive.long().cumsum(0) - 1 if compact else torch.arange(rows))[None].clamp(min=0)
        rotary = text.rotary(hidden, positions)
        visible = torch.ones(rows, rows).tril().bool() & alive[None, :]
        visible |= torch.eye(rows, dtype=torch.bool)  # a dropped row sees itself, so that it stays finite
        before.append(hidden)
        query, key = _heads(layer, hidden, rotary)
        queries.append(query)
        keys.append(key)
        mask = torch.zeros(rows, rows).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        after = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = torch.where(alive[None, :, None], after, hidden) if route else after
    logits: NDArray[np.float32] = text.head(text.norm(hidden))[0].float().numpy()
    return Seen(logits, before, queries, keys)


def kept_by_layer(gates: Sequence[GateRef], kept: Sequence[Sequence[int]]) -> dict[int, Sequence[int]]:
    """What an answer's gates kept, by the layer before which they stand."""
    return {gate.layer: indices for gate, indices in zip(gates, kept, strict=True)}


@torch.inference_mode()
def entering(family: Family, pixels: NDArray[np.float32], schedule: Schedule) -> tuple[list[int], Tensor] | None:
    """What a schedule's gate in the encoder keeps of one image, and the vision tokens [1, k, D] that it hands on.

    None if the schedule has no such gate. Run in torch with the family's encoder, without any graph; that the encoder's
    scores and the smaller image are transformers' own is shown in tests/models.
    """
    gate = next((gate for gate in schedule.gates if gate.kind in ENCODER_GATES), None)
    if gate is None:
        return None
    image = torch.from_numpy(pixels)
    if gate.kind == "downsample":
        features, index = family.vision(grid=tuple(gate.selector["grid"]))(image)
        return index[0].tolist(), family.projector()(features)
    layout = family.layout
    selector = plugins.load(methods, schedule.method, "method").Method.choose(
        GateSite(gate, layout.vision_tokens, layout.image_start, layout.grid, family.dimensions, schedule.tensors)
    )
    seen = family.vision(selector.reads)(image)
    features, *scores = seen if isinstance(seen, tuple) else (seen,)
    every = torch.arange(layout.vision_tokens)[None]
    rows = GateInputs(features, every, torch.ones_like(every), every, 0, dict(zip(selector.reads, scores, strict=True)))
    slots, kept = selector.kept(rows)
    return slots[0].tolist(), family.projector()(kept)


def _heads(layer: Any, hidden: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
    """Post-RoPE queries [1, H, S, dh] and keys [1, Hkv, S, dh] of a Llama layer, spelled out."""
    attention = layer.self_attn
    rows = layer.input_layernorm(hidden)
    split = (*rows.shape[:2], -1, attention.head_dim)
    query, key = (p(rows).view(split).transpose(1, 2) for p in (attention.q_proj, attention.k_proj))
    turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query, key, *rotary)
    return turned
