# SPDX-License-Identifier: Apache-2.0
"""The gate of ALVTS (arXiv 2606.14277, equations 1 to 7): thin queries and keys of all rows, scores, the k best."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from secateur.errors import BadSchedule
from secateur.selection.alvts_score import SCORES, importance
from secateur.selection.constants import one_of, parameters
from secateur.selection.low_rank import Factors, queries_and_keys
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.topk import best


@dataclass(frozen=True)
class Thin:
    """Constants of one gate: the rank of its factors, and what scores a token."""

    rank: int
    score: str

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise BadSchedule(f"rank {self.rank} must be at least 1")
        one_of("score", self.score, SCORES)


class LowRankSelector(Selector):
    """Reads the whole stream that enters the layer; positions are those of the prompt. All of it in fp32."""

    down: Tensor
    query_up: Tensor
    key_up: Tensor

    def __init__(self, site: GateSite) -> None:
        super().__init__()
        thin = parameters(Thin, site.gate.selector, "alvts")
        self.keep, self.tokens, self.score = site.gate.keep, site.vision_tokens, thin.score
        if site.projections is None:
            raise BadSchedule(
                f"the alvts gate at layer {site.gate.layer} must be of kind 'route', not '{site.gate.kind}'"
            )
        self.projections, self.bidirectional = site.projections, site.dimensions.bidirectional
        for name, factor in _factors(site, thin.rank)._asdict().items():
            self.register_buffer(name, factor)

    def forward(self, rows: GateInputs) -> Tensor:
        factors = Factors(self.down, self.query_up, self.key_up)
        query, key = queries_and_keys(factors, self.projections, rows.hidden_states, rows.position_ids)
        score = importance(
            query, key, rows.attention_mask, rows.image_start, self.tokens, self.score, self.bidirectional
        )
        return best(score, self.keep)


def tensor_name(layer: int, part: str) -> str:
    """The name of a factor in `Schedule.tensors`."""
    return f"layer_{layer:02}.{part}"


def _factors(site: GateSite, rank: int) -> Factors:
    """The gate's factors, checked against the layer's projections."""
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
                f"tensor '{name}' has shape {list(array.shape)} or values that are no numbers, not finite "
                f"{list(shape)}; calibrate the schedule again"
            )
        found.append(torch.from_numpy(array.copy()))
    return Factors(*found)
