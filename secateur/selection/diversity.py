# SPDX-License-Identifier: Apache-2.0
"""Max-min diversity: farthest-point sampling on cosine distance, unrolled to a fixed number of picks.

Tensors: features [B, N, C] any float; distance [B, N, N] fp32; slots and picks int64. An exported pick is three
nodes: TopK, GatherND, Min; export/first_maximum.py replaces the first for TensorRT.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Distances are (1 - cosine) / 4, so at most 0.5. The distance of a token to itself is -1 (-0.75 for a row of zeros):
# smaller than all others, which marks picked tokens, and with a larger absolute value than all others.
# Subtracting the 0 and 1 of a comparison costs half as much as a Where on N x N; a power of two changes no order.
SELF = -1.0


def cosine_distance(features: Tensor, identity: Tensor) -> Tensor:
    """Return (1 - cosine) / 4 of the rows, at least 0, and `SELF` between a token and itself: [B, N, N] fp32.

    `identity` [B, N] is a different number for each row. It is compared in the graph, because an N x N constant would
    be the largest part of a gate's file.
    """
    rows = features.float()
    rows = rows / (2 * torch.linalg.vector_norm(rows, dim=-1, keepdim=True)).clamp_min(1e-12)
    apart = torch.relu(0.25 - rows @ rows.transpose(1, 2))
    return apart - (identity.unsqueeze(2) == identity.unsqueeze(1)).float()


def nearest(distance: Tensor, slots: Tensor) -> Tensor:
    """Return the distance [B, N] of every token to the nearest of slots [B, n], which may repeat; `SELF` at slots."""
    return _rows(distance, slots.unsqueeze(-1)).amin(1)


def nearest_constant(distance: Tensor, slots: Tensor) -> Tensor:
    """Return the distance [B, N] of every token to the nearest of constant slots [n], the same for all samples."""
    return distance.index_select(1, slots).amin(1)


def farthest(distance: Tensor, count: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Pick `count` tokens [B, count], each farthest from all chosen so far; also return the final distances [B, N].

    Equal distances go to the lower index.

    Args:
        distance: from `cosine_distance`.
        count: at least 1.
        start: `nearest` of the tokens already chosen. None: the first pick is the token whose nearest other token is
            farthest away (DivPrune, arXiv 2503.02175, algorithm 1).
    """
    picks = []
    reach = start if start is not None else distance.abs().amin(-1)
    for i in range(count):
        pick = _first_maximum(reach)
        row = _rows(distance, pick)
        reach = row if i == 0 and start is None else torch.minimum(reach, row)
        picks.append(pick)
    return torch.cat(picks, 1), reach


def _first_maximum(values: Tensor) -> Tensor:
    """Return the index [B, 1] of the first largest value. ArgMax runs on the CPU in some CUDA builds, TopK does not."""
    if torch.compiler.is_exporting():
        return torch.topk(values, 1, dim=-1).indices
    return values.argmax(-1, keepdim=True)


def _rows(distance: Tensor, index: Tensor) -> Tensor:
    """Return the rows [B, ..., N] of `distance` at `index` [B, ..., 1].

    Exported as one GatherND: torch's own indexing becomes several shape operators and a wider GatherND.
    """
    if torch.compiler.is_exporting():
        result: Tensor = torch.onnx.ops.symbolic(
            "GatherND", (distance, index), {"batch_dims": 1}, dtype=distance.dtype, shape=_row_shape(distance, index)
        )
        return result
    sample = torch.arange(distance.shape[0], device=distance.device)
    return distance[sample.view(-1, *[1] * (index.dim() - 2)), index[..., 0]]


def _row_shape(distance: Tensor, index: Tensor) -> tuple[int, ...]:
    return (*index.shape[:-1], distance.shape[2])
