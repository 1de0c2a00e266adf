# SPDX-License-Identifier: Apache-2.0
"""A walk through the unpruned model, one decoder layer at a time, all samples side by side.

Only the rows between two layers are held, so what it needs beside the model is one hidden state a sample.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.calibration.samples import Sample
from secateur.calibration.statistics import LayerRows
from secateur.models import _attention
from secateur.models.base import Decoder, Family
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer


class Passage(NamedTuple):
    """One sample's way through one layer.

    number, sample  of the layer and of the sample
    before, after   rows [1, S, D]
    query           [1, H, S, dh] post-RoPE
    key             [S, 1, Hkv, dh] post-RoPE
    """

    number: int
    sample: int
    before: Tensor
    after: Tensor
    query: Tensor
    key: Tensor


@torch.no_grad()
def prompts(
    family: Family, samples: Iterable[Sample], reads: tuple[str, ...] = ()
) -> Iterator[tuple[Tensor, tuple[Tensor, ...]]]:
    """For each sample the rows [1, S, D] that enter layer 0 (head, image, question), and the encoder scores `reads`.

    Their names are those of `methods.base.Selector`.
    """
    tokenizer = Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))
    vision, projector, embed = family.vision(reads), family.projector(), family.decoder.embed
    head = embed(torch.tensor([family.prompt.head]))
    for sample in samples:
        encoded = vision(torch.from_numpy(pixel_values(sample.image, family.preprocess)))
        features, *read = encoded if isinstance(encoded, tuple) else (encoded,)
        tail = embed(torch.tensor([tokenizer.first(sample.question)]))
        yield torch.cat([head, projector(features), tail], dim=1), tuple(read)


def walk(family: Family, start: Sequence[Tensor]) -> Iterator[LayerRows]:
    """The rows that enter each decoder layer, from the rows `start` [1, S, D] that enter layer 0."""
    for number, rows in enumerate(entering(family.decoder, start)):
        yield LayerRows(number, rows, family.decoder.projections(number))


@torch.no_grad()
def entering(
    decoder: Decoder, start: Sequence[Tensor], passed: Callable[[Passage], None] = lambda passage: None
) -> Iterator[list[Tensor]]:
    """The rows of `walk` alone; `passed` is told of every sample's way through the layer whose rows were just given."""
    rows = list(start)
    for number in range(len(decoder.layers)):
        yield list(rows)
        for sample, before in enumerate(rows):
            tap = _attention.Tap()
            position_ids = torch.arange(before.shape[1])[None]
            rows[sample] = run(decoder, (number,), before, position_ids, tap)
            assert tap.query is not None
            passed(Passage(number, sample, before, rows[sample], tap.query, tap.rows[number][0]))


@torch.no_grad()
def run(
    decoder: Decoder, numbers: Iterable[int], rows: Tensor, position_ids: Tensor, tap: _attention.Tap | None = None
) -> Tensor:
    """Rows [1, S, D] at `position_ids` [1, S] through the layers `numbers`, each row seeing those before it."""
    count = rows.shape[1]
    mask = _attention.causal_mask(torch.ones(1, count), count, 0, rows.dtype)
    position_embeddings = decoder.rotary(rows, position_ids)
    with _attention.active(decoder.config):
        for number in numbers:
            layer = decoder.layers[number]
            rows = _attention.run_layer(layer, rows, mask, position_ids, position_embeddings, tap or _attention.Tap())
    return rows
