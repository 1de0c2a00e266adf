# SPDX-License-Identifier: Apache-2.0
"""Measurements on one sample; `selection.statistics.Statistics` defines each of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from secateur.bundle.layout import Layout, View
from secateur.calibration.layer_walk import Passage, positions, run
from secateur.checkpoints.streaming import held
from secateur.decoder.pieces import Decoder
from secateur.families.base import Family
from secateur.selection.attention import attention_map, attention_softmax, visible
from secateur.selection.statistics import Floats

CHUNK = 64
"""Rows whose attention is computed at once: with 32 heads and 700 columns they take 6 MB."""


class ViewMeasures:
    """Measurements of all views of one size: `arrays` has the fields of `Statistics` that are `wanted`.

    Each view counts as a sample of its own, measured as if the prompt had no other view.
    """

    def __init__(self, family: Family, views: Sequence[View], samples: int, wanted: frozenset[str]) -> None:
        self.whole, self.views = family.layout, views
        self.layout = self.whole if len(self.whole.views) == 1 else self.whole.alone(views[0])
        self.bidirectional, self.samples = family.dimensions.bidirectional, samples * len(views)
        depth, tokens = family.dimensions.layers, self.layout.vision_tokens
        shapes = {
            "similarity": (depth, self.samples, tokens),
            "attention": (depth, self.samples),
            "cross_attention": (depth, self.samples, tokens),
            "self_attention": (depth, self.samples, tokens),
            "encoder_variance": (self.samples, 2),
        }
        self.arrays: dict[str, Any] = {n: np.zeros(s, np.float32) for n, s in shapes.items() if n in wanted}

    def encoder(self, sample: int, scores: Sequence[Tensor]) -> None:
        """Measure the encoder's scores of a sample, each [1, N] over all views."""
        if "encoder_variance" in self.arrays:
            for i, view in enumerate(self.views):
                tokens = torch.from_numpy(self.whole.members[self.whole.views.index(view)])
                variance = [float(score[:, tokens].float().var(correction=0)) for score in scores]
                self.arrays["encoder_variance"][sample * len(self.views) + i] = variance

    def layer(self, passage: Passage) -> None:
        """Measure a sample's passage through a layer."""
        layout, both = self.layout, self.bidirectional
        image_end = layout.image_start + layout.vision_tokens
        for i, view in enumerate(self.views):
            only, at = passage.only(self.whole, view), (passage.number, passage.sample * len(self.views) + i)
            rows = only.before.shape[1]
            if "similarity" in self.arrays:
                self.arrays["similarity"][at] = similarity(only, layout)
            if "attention" in self.arrays:
                self.arrays["attention"][at] = attention(only, layout)
            if "cross_attention" in self.arrays:
                self.arrays["cross_attention"][at] = received(only, layout, image_end, rows, both)
            if "self_attention" in self.arrays:
                self.arrays["self_attention"][at] = received(only, layout, layout.image_start, image_end, both)


class DropDivergence:
    """KL divergence of the next token if no vision token enters layer l or later, for each layer l.

    The text rows of each sample run from every layer on, all in one batch, so that each layer is read once: after
    layer n there are n + 1 copies of them. They keep their positions.

    text  of each sample [n, T, D]: copy l has had no vision row in layers l to n - 1
    full  of each sample the last row [1, D] of the unpruned prompt after the last layer
    """

    def __init__(self, family: Family, rows: Sequence[Tensor]) -> None:
        """`rows` [1, S, D] are the input of layer 0 of each sample."""
        self.family, self.full = family, list[Tensor]()
        self.text = [each[:0, self._columns(each)] for each in rows]

    def _columns(self, rows: Tensor) -> list[int]:
        layout = self.family.layout
        return [*layout.text_rows(), *range(layout.rows, rows.shape[1])]

    def enter(self, number: int, sample: int, rows: Tensor) -> None:
        """Begin a copy with the input `rows` of layer `number`, and run all copies through the layer."""
        columns = self._columns(rows)
        text = torch.cat([self.text[sample], rows[:, columns]])
        position_ids = positions(self.family.layout, rows.shape[1])[..., columns]
        self.text[sample] = run(self.family.decoder, (number,), text, position_ids)

    def leave(self, passage: Passage) -> None:
        """Keep the last row of the unpruned prompt after the last layer."""
        if passage.number == self.family.dimensions.layers - 1 and passage.sample < len(self.text):
            self.full.append(passage.after[:, -1])

    def result(self) -> Floats:
        """Return the divergence [L, samples] in nats, after the last layer."""
        decoder = self.family.decoder
        with held(decoder.norm, decoder.head):
            each = [divergence(decoder, full, text[:, -1]) for full, text in zip(self.full, self.text, strict=True)]
        return np.stack(each, axis=1)


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


@torch.no_grad()
def divergence(decoder: Decoder, full: Tensor, dropped: Tensor) -> Floats:
    """KL(full || dropped) of the next token in nats: rows [1, D] and [L, D] after the last layer -> [L]."""
    log_full, log_dropped = (F.log_softmax(decoder.head(decoder.norm(row)).float(), dim=-1) for row in (full, dropped))
    out: Floats = (log_full.exp() * (log_full - log_dropped)).sum(-1).numpy()
    return out
