# SPDX-License-Identifier: Apache-2.0
"""What is measured on one sample; the fields of `Statistics` say what each means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.bundle.layout import Layout
from secateur.calibration.layer_walk import Passage, positions, run
from secateur.decoder.pieces import Decoder
from secateur.selection.attention import attention_map, attention_softmax, visible
from secateur.selection.statistics import Floats

CHUNK = 64
"""Rows whose attention is held at a time: 32 heads of 700 columns are 6 MB then."""


def similarity(passage: Passage, layout: Layout) -> Floats:
    """Cosine between each vision row before and after the layer: [N]."""
    image = slice(layout.image_start, layout.image_start + layout.vision_tokens)
    before, after = (rows[0, image].float() for rows in (passage.before, passage.after))
    out: Floats = F.cosine_similarity(before, after, dim=-1).numpy()
    return out


def attention(passage: Passage, layout: Layout) -> float:
    """Attention of the last row to all vision rows, mean over heads."""
    mask = torch.ones(1, passage.key.shape[0])
    query = passage.query[:, :, -1]
    return float(attention_softmax(query, passage.key, mask, layout.image_start, layout.vision_tokens).sum())


def received(passage: Passage, layout: Layout, first: int, end: int, bidirectional: bool) -> Floats:
    """Attention of the rows [first, end) to each vision row: the largest over heads, summed over these rows: [N]."""
    mask = torch.ones(1, passage.key.shape[0])
    total = torch.zeros(layout.vision_tokens)
    key = passage.key.permute(1, 2, 3, 0)
    for rows in torch.arange(first, end).split(CHUNK):
        seen = attention_map(passage.query.index_select(2, rows), key, visible(rows, mask, bidirectional)).amax((1, 2))
        total += seen[0, :, layout.image_start : layout.image_start + layout.vision_tokens].sum(0)
    out: Floats = total.numpy()
    return out


def without_image(decoder: Decoder, layout: Layout, before: Tensor | None, rows: Tensor, number: int) -> Tensor:
    """The text rows [n + 1, T, D] after layer n = `number`: entry l as if no vision row had entered layers l to n.

    before  the same after the layer before, [n, T, D]; None of the first
    rows    [1, S, D], the unpruned prompt as it enters layer n: what entry n begins with

    The rows keep their positions.
    """
    others = [*layout.text_rows(), *range(layout.rows, rows.shape[1])]
    text = rows[:, others] if before is None else torch.cat([before, rows[:, others]])
    return run(decoder, (number,), text, positions(layout, rows.shape[1])[..., others])


@torch.no_grad()
def divergence(decoder: Decoder, full: Tensor, dropped: Tensor) -> Floats:
    """KL(full || dropped) of the next token in nats: rows [1, D] and [L, D] after the last layer -> [L]."""
    log_full, log_dropped = (F.log_softmax(decoder.head(decoder.norm(row)).float(), dim=-1) for row in (full, dropped))
    out: Floats = (log_full.exp() * (log_full - log_dropped)).sum(-1).numpy()
    return out
