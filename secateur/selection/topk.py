# SPDX-License-Identifier: Apache-2.0
"""Top-k of any size, and gathering rows by slots.

TensorRT's TopK returns at most `LIMIT` values. For more there are several rounds, each without the values that earlier
rounds took; all sizes are constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

LIMIT = 3840
OUT = float(torch.finfo(torch.float32).min)  # finite, because infinite constants are not safe in a graph
LAST_SLOT = torch.iinfo(torch.int32).max


def top(score: Tensor, count: int) -> Tensor:
    """Return the indices [..., count] of the largest scores of the last axis, best first; ties to the lower index.

    With a count above `LIMIT`, scores below -1.7e38, including -inf, count as equal.
    """
    if count <= LIMIT:
        return _first(score, count)
    score = score.float().clamp_min(OUT / 2)
    rounds = [_first(score, LIMIT)]
    for left in range(count - LIMIT, 0, -LIMIT):
        score = _without(score, rounds[-1])
        rounds.append(_first(score, min(left, LIMIT)))
    return torch.cat(rounds, -1)


def ascending(slots: Tensor) -> Tensor:
    """Sort slots [B, k], distinct within a row and below 2**31 - 1, in ascending order."""
    count = slots.shape[-1]
    rounds = [_smallest(slots, min(count, LIMIT))]
    for left in range(count - LIMIT, 0, -LIMIT):
        slots = torch.where(slots <= rounds[-1][..., -1:], LAST_SLOT, slots)
        rounds.append(_smallest(slots, min(left, LIMIT)))
    return torch.cat(rounds, -1) if len(rounds) > 1 else rounds[0]


def _without(score: Tensor, chosen: Tensor) -> Tensor:
    """Return the scores [..., N] with OUT at the indices chosen [..., k]; one ScatterND."""
    rows, picked = score.reshape(-1, score.shape[-1]), chosen.reshape(-1, chosen.shape[-1])
    offset = torch.arange(rows.shape[0], device=score.device)[:, None] * rows.shape[1]
    out = torch.full((), OUT, device=score.device).expand(picked.numel())
    return rows.reshape(-1).index_put(((picked + offset).reshape(-1),), out).reshape(score.shape)


def _first(score: Tensor, count: int) -> Tensor:
    """Return the first `count` indices. In ONNX, TopK gives ties to the lower index; eager torch.topk may not."""
    if torch.compiler.is_exporting():
        return torch.topk(score, count, dim=-1).indices
    return torch.sort(score, dim=-1, descending=True, stable=True).indices[..., :count]


def _smallest(slots: Tensor, count: int) -> Tensor:
    return torch.topk(slots, count, dim=-1, largest=False).values


def best(score: Tensor, count: int) -> Tensor:
    """Return the slots [B, count] of the largest scores [B, N], ascending."""
    return ascending(top(score, count))


def gather(rows: Tensor, slots: Tensor) -> Tensor:
    """Return rows [B, N, ...] at slots [B, k]: [B, k, ...], with one Gather of whole rows."""
    if slots.shape[1] == 0:
        return rows[:, :0]
    batch, count = rows.shape[:2]
    offset = torch.arange(batch, device=rows.device)[:, None] * count
    flat = rows.reshape(batch * count, *rows.shape[2:]).index_select(0, (slots + offset).reshape(-1))
    return flat.reshape(batch, slots.shape[1], *rows.shape[2:])
