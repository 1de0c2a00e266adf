# SPDX-License-Identifier: Apache-2.0
"""Reference run: transformers' own layers and attention on all rows, with dropped tokens masked from a layer on."""

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
from secateur.bundle.manifest import GateRef
from secateur.bundle.schedule import ENCODER_GATES, Gate, Schedule
from secateur.families.base import Family
from secateur.selection.selector import GateInputs, GateSite


@dataclass(frozen=True)
class Seen:
    """Results of a masked run: logits [S, V], and per layer its input rows [1, S, D] and post-RoPE queries and keys."""

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
    """Return the logits [S, V] of `masked_run`."""
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
    generated: int = 0,
) -> Seen:
    """Run text and images, then `tokens`; from layer l on only the original vision tokens kept[l] are visible.

    Dropped rows are still computed, but no other row attends to them, which equals gathering with original positions.

    compact    positions are renumbered to count only visible rows
    route      invisible rows skip the layer
    vision     [1, k, D] replacement for the vision tokens kept[0]
    generated  number of tokens at the end that are an answer, which is causal even in a bidirectional prompt
    """
    text: Any = family.decoder
    layout = family.layout
    at = torch.tensor(layout.vision_rows)
    image, planes = encoded(family, pixels)
    if vision is not None:
        image = image.index_copy(1, torch.tensor(list(kept[0]), dtype=torch.int64), vision)
    ids = [*layout.ids(family.prompt.pad), *tokens]
    hidden: Tensor = family.embed()(torch.tensor([ids])).index_copy(1, at, image)
    rows = hidden.shape[1]
    images = torch.zeros(1, rows, dtype=torch.bool).index_fill(1, at, True)
    alive = torch.ones(rows, dtype=torch.bool)
    numbered = torch.tensor(layout.numbered(rows))
    original = numbered if len(numbered) == 1 else numbered[:, None]
    upto = torch.ones(rows, rows).tril().bool()
    if family.decoder.bidirectional:
        upto[: rows - generated, : rows - generated] = True
    before, queries, keys = [], [], []
    for number, layer in enumerate(text.layers):
        if number in kept:
            alive = torch.ones(rows, dtype=torch.bool)
            alive[at] = False
            alive[at[list(kept[number])]] = True
        counted = (alive.long().cumsum(0) - 1)[None].clamp(min=0) + original.flatten()[0]
        positions = counted if compact else original
        rotary = text.rotary(hidden, positions)
        visible = upto & alive[None, :]
        visible |= torch.eye(rows, dtype=torch.bool)  # a dropped row attends to itself, so that it stays finite
        before.append(hidden)
        query, key = _heads(layer, hidden, rotary)
        queries.append(query)
        keys.append(key)
        mask = torch.zeros(rows, rows).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
        after = layer(hidden, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        hidden = torch.where(alive[None, :, None], after, hidden) if route else after
        if number < len(planes):  # transformers adds them after the layer, so that rows that skip it get them too
            hidden = family.model.model.language_model._deepstack_process(hidden, images, planes[number][0])
    logits: NDArray[np.float32] = text.head(text.norm(hidden))[0].float().numpy()
    return Seen(logits, before, queries, keys)


def encoded(family: Family, pixels: NDArray[np.float32]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return vision tokens [1, N, D] of all images of a prompt, and their DeepStack planes."""
    seen = family.vision()(torch.from_numpy(pixels))
    features, *planes = seen if isinstance(seen, tuple) else (seen,)
    return family.projector()(features).flatten(0, 1)[None], tuple(plane.flatten(0, 1)[None] for plane in planes)


def kept_by_layer(gates: Sequence[GateRef], kept: Sequence[Sequence[int]]) -> dict[int, Sequence[int]]:
    """Return the tokens kept by each gate, by the layer after the gate."""
    return {gate.layer: indices for gate, indices in zip(gates, kept, strict=True)}


@torch.inference_mode()
def entering(family: Family, pixels: NDArray[np.float32], schedule: Schedule) -> tuple[list[int], Tensor] | None:
    """Return the kept indices and the vision tokens [1, k, D] after the gate in the encoder; None without such a gate.

    It runs the family's encoder in torch, without exported graphs. Other tests compare the encoder's scores and the
    smaller image with transformers.
    """
    gate = next((gate for gate in schedule.gates if gate.kind in ENCODER_GATES), None)
    if gate is None:
        return None
    kept, tokens, layout = list[int](), list[Tensor](), family.layout
    for number, image in enumerate(torch.from_numpy(pixels)):
        if gate.kind == "downsample":
            features, index = family.vision(grid=tuple(gate.of_views[0].selector["grid"]))(image[None])
        else:
            features, index = _encoder_gate(family, image[None], gate, schedule)
        kept += (index[0] + number * layout.image_tokens).tolist()
        tokens.append(family.projector()(features))
    return kept, torch.cat(tokens, dim=1)


def _encoder_gate(family: Family, image: Tensor, gate: Gate, schedule: Schedule) -> tuple[Tensor, Tensor]:
    """Return features [1, k, Dv] and index [1, k] of one image, view by view."""
    method = plugins.load(methods, schedule.method, "method").Method
    features, index = list[Tensor](), list[Tensor]()
    places = {row: number for number, row in enumerate(family.layout.vision_rows)}
    for part, view in zip(gate.of_views, family.layout.image_views, strict=False):
        alone = Gate(gate.layer, part.keep, gate.kind, part.selector)
        start = family.layout.image_start
        selector = method.choose(GateSite(alone, view.tokens, start, view.grid, family.dimensions, schedule.tensors))
        seen = family.vision(selector.reads)(image)
        every, *further = seen if isinstance(seen, tuple) else (seen,)
        rows = torch.tensor([places[row] for row in view.rows])
        scores = [score[:, rows] for score in further[family.dimensions.planes :]]
        own = torch.arange(view.tokens)[None]
        read = dict(zip(selector.reads, scores, strict=True))
        slots, kept = selector.kept(GateInputs(every[:, rows], own, torch.ones_like(own), own, 0, read))
        features.append(kept)
        index.append(rows[slots])
    order = torch.cat(index, dim=1)[0].argsort()
    return torch.cat(features, dim=1)[:, order], torch.cat(index, dim=1)[:, order]


def _heads(layer: Any, hidden: Tensor, rotary: Any) -> tuple[Tensor, Tensor]:
    """Return post-RoPE queries [1, H, S, dh] and keys [1, Hkv, S, dh] of a Llama layer."""
    attention = layer.self_attn
    rows = layer.input_layernorm(hidden)
    split = (*rows.shape[:2], -1, attention.head_dim)
    query, key = (p(rows).view(split) for p in (attention.q_proj, attention.k_proj))
    if hasattr(attention, "q_norm"):
        query, key = attention.q_norm(query), attention.k_norm(key)
    turned: tuple[Tensor, Tensor] = apply_rotary_pos_emb(query.transpose(1, 2), key.transpose(1, 2), *rotary)
    return turned
