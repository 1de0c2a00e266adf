# SPDX-License-Identifier: Apache-2.0
"""Query and key projections as products of two thin matrices (ALVTS, arXiv 2606.14277, equations 1 and 8 to 10).

A projection W [out, D] becomes U V with U [out, R] and V [R, D]. The product is never formed: rows pass V, then U.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.bundle.layout import Dimensions
from secateur.selection.statistics import Projections

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
    """The best approximation of both weights by `rank`, the singular values shared evenly (equations 8 to 10).

    A matrix of lower rank than that keeps its own.
    """
    (query_up, query_down), (key_up, key_down) = (_split(w, rank) for w in (projections.query, projections.key))
    return Factors(torch.cat([query_down, key_down]), query_up, key_up)


def _split(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """weight [out, D] -> U [out, R] and V [R, D]."""
    u, s, v = torch.linalg.svd(weight.float(), full_matrices=False)
    root = s[:rank].sqrt()
    return (u[:, :rank] * root).contiguous(), (root[:, None] * v[:rank]).contiguous()


def queries_and_keys(
    factors: Factors, projections: Projections, rows: Tensor, position_ids: Tensor
) -> tuple[Tensor, Tensor]:
    """Approximate post-RoPE queries [B, H, S, dh] and keys [B, Hkv, S, dh], fp32, of the rows [B, S, D] of a layer."""
    low = F.linear(projections.normalize(rows.float()), factors.down)
    low_query, low_key = low.split([factors.query_up.shape[1], factors.key_up.shape[1]], dim=-1)
    query = F.linear(low_query, factors.query_up, _float(projections.query_bias))
    key = F.linear(low_key, factors.key_up, _float(projections.key_bias))
    return projections.heads(query, key, position_ids)


def exact_queries_and_keys(projections: Projections, rows: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """The same by the layer's own weights."""
    normalized = projections.normalize(rows.float())
    query = F.linear(normalized, projections.query.float(), _float(projections.query_bias))
    key = F.linear(normalized, projections.key.float(), _float(projections.key_bias))
    return projections.heads(query, key, position_ids)


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()


def default_rank(dimensions: Dimensions) -> int:
    """The published rank of a published shape, else the largest multiple of 32 within 2 % of the layer, at least 32."""
    d = dimensions
    known = PUBLISHED.get((d.width, d.heads, d.kv_heads, d.head_dim, d.mlp_width))
    return known or max(STEP, int(SHARE * layer_parameters(d) / parameters(d, 1)) // STEP * STEP)


def parameters(dimensions: Dimensions, rank: int) -> int:
    """Weights of a selector: R (2D + (H + Hkv) dh), less where the rank is more than a matrix has."""
    d = dimensions
    return sum(min(rank, d.width, out) * (d.width + out) for out in (d.heads * d.head_dim, d.kv_heads * d.head_dim))


def layer_parameters(dimensions: Dimensions) -> int:
    """Weights of a decoder layer: four projections and a gated MLP."""
    d = dimensions
    return 2 * d.width * (d.heads + d.kv_heads) * d.head_dim + 3 * d.width * d.mlp_width


def layer_macs(dimensions: Dimensions, rows: int) -> int:
    """Multiplications of a decoder layer on `rows` rows."""
    return rows * layer_parameters(dimensions) + 2 * rows**2 * dimensions.heads * dimensions.head_dim


def selector_macs(dimensions: Dimensions, rank: int, rows: int) -> int:
    """Multiplications of a selector, which looks at all rows: thin projections and one score map."""
    return rows * parameters(dimensions, rank) + rows**2 * dimensions.heads * dimensions.head_dim
