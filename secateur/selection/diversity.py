# SPDX-License-Identifier: Apache-2.0
"""Max-min diversity: farthest-point sampling on cosine distance, unrolled to a fixed number of picks.

Tensors: features [B, N, C] any float; distance [B, N, N] fp32; slots and picks int64. An exported pick is three
nodes: TopK, GatherND, Min.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Distances are quarters of 1 - cosine, so at most 0.5. A token is at -1 from itself (a row of zeros at -0.75): below
# every distance, so that a picked token marks itself, and above every distance as an absolute value.
# Subtracting the 0 and 1 of a comparison costs half of a Where on N x N, and a power of two changes no order.
SELF = -1.0


def cosine_distance(features: Tensor, identity: Tensor) -> Tensor:
    """(1 - cosine) / 4 of the rows, at least 0 between two tokens, `SELF` between a token and itself: [B, N, N] fp32.

    `identity` [B, N] names each row uniquely. Comparing it inside the graph costs nothing there, while an N x N
    constant would be the largest part of a gate's file.
    """
    rows = features.float()
    rows = rows / (2 * torch.linalg.vector_norm(rows, dim=-1, keepdim=True)).clamp_min(1e-12)
    apart = torch.relu(0.25 - rows @ rows.transpose(1, 2))
    return apart - (identity.unsqueeze(2) == identity.unsqueeze(1)).float()


def nearest(distance: Tensor, slots: Tensor) -> Tensor:
    """Distance [B, N] of every token to the nearest of slots [B, n]; `SELF` at the slots. Repeats are harmless."""
    return _rows(distance, slots.unsqueeze(-1)).amin(1)


def nearest_constant(distance: Tensor, slots: Tensor) -> Tensor:
    """Return the same for constant slots [n], shared by the batch."""
    return distance.index_select(1, slots).amin(1)


def farthest(distance: Tensor, count: int, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Picks [B, count], each farthest from all chosen so far, ties to the lower index; and the final distances [B, N].

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
    """Index [B, 1] of the first largest value. ArgMax falls back to the CPU in some CUDA builds, TopK does not."""
    if torch.compiler.is_exporting():
        return torch.topk(values, 1, dim=-1).indices
    return values.argmax(-1, keepdim=True)


def _rows(distance: Tensor, index: Tensor) -> Tensor:
    """Rows [B, ..., N] of distance at index [B, ..., 1].

    Written as one GatherND, because torch's own indexing exports as a chain of shape arithmetic and a wider GatherND.
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
