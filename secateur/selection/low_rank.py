# SPDX-License-Identifier: Apache-2.0
"""Thin query and key projections, the token scores they give, and the gate that uses them (ALVTS, arXiv 2606.14277).

A projection W [out, D] becomes U V with U [out, R] and V [R, D]. The product is never computed: rows are multiplied
with V, then with U (equations 1 and 8 to 10). Scores are equations 4 to 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.bundle.layout import Dimensions
from secateur.errors import BadSchedule
from secateur.selection.attention import attention_map, visible
from secateur.selection.constants import one_of
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Projections
from secateur.selection.topk import best

SCORES = ("product", "v2v", "t2v")
STEP = 32
SHARE = 0.02
# (width, heads, kv heads, head width, MLP width) of the models in table 4 of the paper, with its ranks
PUBLISHED = {
    (4096, 32, 32, 128, 11008): 256,  # LLaVA-1.5-7B, LLaVA-NeXT-7B
    (5120, 40, 40, 128, 13824): 256,  # LLaVA-1.5-13B
    (2048, 16, 2, 128, 11008): 128,  # Qwen2.5-VL-3B
}


class Factors(NamedTuple):
    """Thin query and key projections of one layer, fp32.

    down      [RQ + RK, D]  V of the queries over V of the keys: one product instead of two
    query_up  [H * dh, RQ]  U of the queries
    key_up    [Hkv * dh, RK]
    """

    down: Tensor
    query_up: Tensor
    key_up: Tensor


def svd(projections: Projections, rank: int) -> Factors:
    """Return the best approximation of both weights of rank `rank` (equations 8 to 10).

    Each factor has the square roots of the singular values. A matrix of lower rank keeps its own rank.
    """
    (query_up, query_down), (key_up, key_down) = (_split(w, rank) for w in (projections.query, projections.key))
    return Factors(torch.cat([query_down, key_down]), query_up, key_up)


def _split(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Decompose a weight [out, D] into U [out, R] and V [R, D]."""
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).contiguous(), (root[:, None] * v[:rank]).contiguous()


def queries_and_keys(
    factors: Factors | None, projections: Projections, rows: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Return post-RoPE queries [B, H, S, dh] and keys [B, Hkv, S, dh], fp32, of rows [B, S, D].

    They are approximate, or without factors those of the layer's own weights.
    """
    normalized = projections.normalize(rows.float())
    if factors is None:
        return _heads(
            projections, normalized, normalized, projections.query.float(), projections.key.float(), position_ids
        )
    low_query, low_key = F.linear(normalized, factors.down).split(
        [factors.query_up.shape[1], factors.key_up.shape[1]], dim=-1
    )
    return _heads(projections, low_query, low_key, factors.query_up, factors.key_up, position_ids)


def _heads(
    projections: Projections,
    query_rows: Tensor,
    key_rows: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    position_ids: Tensor,
) -> tuple[Tensor, Tensor]:
    query = F.linear(query_rows, query_weight, _float(projections.query_bias))
    key = F.linear(key_rows, key_weight, _float(projections.key_bias))
    return projections.heads(query, key, position_ids)


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def default_rank(dimensions: Dimensions) -> int:
    """Return the published rank of a published shape, else the largest multiple of 32 with 2 % of a layer's weights.

    At least 32.
    """
    d = dimensions
    known = PUBLISHED.get((d.width, d.heads, d.kv_heads, d.head_dim, d.mlp_width))
    return known or max(STEP, int(SHARE * layer_parameters(d) / parameters(d, 1)) // STEP * STEP)


def parameters(dimensions: Dimensions, rank: int) -> int:
    """Return the number of weights of a selector: R (2D + (H + Hkv) dh), fewer if a matrix has a lower rank."""
    d = dimensions
    return sum(min(rank, d.width, out) * (d.width + out) for out in (d.heads * d.head_dim, d.kv_heads * d.head_dim))


def layer_parameters(dimensions: Dimensions) -> int:
    """Return the number of weights of a decoder layer: four projections and a gated MLP."""
    d = dimensions
    return 2 * d.width * (d.heads + d.kv_heads) * d.head_dim + 3 * d.width * d.mlp_width


def layer_macs(dimensions: Dimensions, rows: int) -> int:
    """Return the multiplications of a decoder layer on `rows` rows."""
    return rows * layer_parameters(dimensions) + 2 * rows**2 * dimensions.heads * dimensions.head_dim


def selector_macs(dimensions: Dimensions, rank: int, rows: int, asking: int | None = None) -> int:
    """Return the multiplications of a selector on all `rows` rows: thin projections and one score map.

    asking  rows whose attention counts (None: all)
    """
    asking = rows if asking is None else asking
    return rows * parameters(dimensions, rank) + asking * rows * dimensions.heads * dimensions.head_dim


def importance(
    query: Tensor,
    key: Tensor,
    attention_mask: Tensor,
    image_start: int,
    vision_tokens: int,
    score: str = "product",
    bidirectional: bool = False,
) -> Tensor:
    """Return attention received from the vision rows, times attention received from the text rows: [B, N] fp32.

    With score "v2v" or "t2v" only the attention from the vision rows, or only that from the text rows.

    query [B, H, S, dh], key [B, Hkv, S, dh] post-RoPE, attention_mask [B, S] (1 = valid); causal unless
    `bidirectional`. Softmax over all rows for each head, then the mean over heads, then sums over the querying rows.
    The paper takes means instead of sums: they differ by a factor, and a product of means is too small for 16 bits.

    Text before the image is not counted; with a causal mask it sees no vision token. Without text after the image the
    product is zero. With a causal mask the first tokens are visible to more vision rows than the last, so "product" and
    "v2v" prefer the top of the image; all text after the image sees every token, so "t2v" does not.
    """
    image_end = image_start + vision_tokens
    first = image_end if score == "t2v" else image_start
    rows = torch.arange(first, query.shape[2], device=query.device)
    seen = visible(rows, attention_mask, bidirectional)
    shares = attention_map(query[:, :, first:], key.transpose(-1, -2), seen)
    shares = shares[..., image_start:image_end].mean((1, 2))
    from_vision = shares[:, : image_end - first].sum(1)
    if score == "v2v":
        return from_vision
    asking = attention_mask[:, image_end:, None].to(torch.float32)
    from_text = (shares[:, image_end - first :] * asking).sum(1)
    return from_text if score == "t2v" else from_vision * from_text


@dataclass(frozen=True)
class Thin:
    """Constants of one gate: the rank of its factors, and the score of a token."""

    rank: int
    score: str

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadSchedule(f"rank {self.rank} must be at least 1")
        one_of("score", self.score, SCORES)


class LowRankSelector(Selector):
    """Keeps the k tokens with the largest `importance` by thin projections of the layer's input rows, in fp32."""

    query_down: Tensor
    key_down: Tensor
    query_up: Tensor
    key_up: Tensor

    def __init__(self, site: GateSite, constants: Thin) -> None:
        super().__init__()
        self.keep, self.tokens, self.score = site.gate.keep, site.vision_tokens, constants.score
        if site.projections is None:
            raise BadSchedule(
                f"the alvts gate at layer {site.gate.layer} must be of kind 'route', not '{site.gate.kind}'"
            )
        self.projections, self.bidirectional = site.projections, site.dimensions.bidirectional
        down, query_up, key_up = _factors(site, constants.rank)
        # Two products here, because TensorRT would copy both halves of the rows of one.
        query_down, key_down = down.split([query_up.shape[1], key_up.shape[1]])
        self.register_buffer("query_down", query_down)
        self.register_buffer("key_down", key_down)
        self.register_buffer("query_up", query_up)
        self.register_buffer("key_up", key_up)

    def forward(self, rows: GateInputs) -> Tensor:
        return best(self.importance(rows), self.keep)

    def importance(self, rows: GateInputs) -> Tensor:
        """Return the score [B, N] fp32."""
        normalized = self.projections.normalize(rows.hidden_states.float())
        low_query, low_key = F.linear(normalized, self.query_down), F.linear(normalized, self.key_down)
        query, key = _heads(self.projections, low_query, low_key, self.query_up, self.key_up, rows.position_ids)
        return importance(
            query, key, rows.attention_mask, rows.image_start, self.tokens, self.score, self.bidirectional
        )


def tensor_name(layer: int, part: str) -> str:
    """Return the name of a factor in `Schedule.tensors`."""
    return f"layer_{layer:02}.{part}"


def _factors(site: GateSite, rank: int) -> Factors:
    """Return the gate's factors, after a check of their shapes and values."""
    assert site.projections is not None
    layer, d = site.gate.layer, site.dimensions
    query_out, key_out = d.heads * d.head_dim, d.kv_heads * d.head_dim
    query_rank, key_rank = (min(rank, d.width, out) for out in (query_out, key_out))
    shapes = ((query_rank + key_rank, d.width), (query_out, query_rank), (key_out, key_rank))
    found = []
    for part, shape in zip(Factors._fields, shapes, strict=True):
        name = tensor_name(layer, part)
        if name not in site.tensors:
            raise BadSchedule(f"the schedule has no tensor '{name}'; calibrate it again")
        array = np.asarray(site.tensors[name], np.float32)
        if array.shape != shape or not np.isfinite(array).all():
            raise BadSchedule(
                f"tensor '{name}' of shape {list(array.shape)} must be of shape {list(shape)} with finite values; "
                "calibrate the schedule again"
            )
        found.append(torch.from_numpy(array.copy()))
    return Factors(*found)
