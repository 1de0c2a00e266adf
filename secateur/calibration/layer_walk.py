# SPDX-License-Identifier: Apache-2.0
"""A walk through the unpruned model, one decoder layer at a time, all samples side by side.

What it needs beside one layer of the model is one hidden state a sample, as the rows between two layers replace those
before them; and DeepStack planes, of the vision rows alone, until their layer has added them. Who wants to walk again
keeps the rows of layer 0 too.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.bundle.layout import Layout, View
from secateur.calibration.samples import Sample
from secateur.checkpoints.streaming import held
from secateur.decoder import attention
from secateur.decoder.pieces import Decoder
from secateur.families.base import Family
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from secateur.selection.statistics import LayerRows


class Passage(NamedTuple):
    """One sample's way through one layer.

    number, sample  of the layer and of the sample (of one view, if the prompt has several)
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

    def only(self, layout: Layout, view: View) -> Passage:
        """The same without the other views and the text between them."""
        if len(layout.views) == 1:
            return self
        before, after = (only(rows, layout, view) for rows in (self.before, self.after))
        query = only(self.query.transpose(1, 2), layout, view).transpose(1, 2)
        key = only(self.key.transpose(0, 1), layout, view).transpose(0, 1)
        return Passage(self.number, self.sample, before, after, query, key)


class Start(NamedTuple):
    """What a sample brings into the decoder.

    rows    [1, S, D] that enter layer 0: text, images, question
    planes  [1, N, D] each, added to the vision rows after the first layers (DeepStack)
    read    scores [1, N] of the encoder
    """

    rows: Tensor
    planes: tuple[Tensor, ...] = ()
    read: tuple[Tensor, ...] = ()


@torch.no_grad()
def prompts(family: Family, samples: Iterable[Sample], reads: tuple[str, ...] = ()) -> Iterator[Start]:
    """Each sample's way into the decoder, with the encoder's scores `reads`, named as in `methods.base.Selector`.

    Where a prompt has several images, a sample's image stands for all of them.

    Raises:
        BadImage: the file of a sample is damaged.
    """
    tokenizer = Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))
    vision, projector, embed = family.vision(reads), family.projector(), family.decoder.embed
    layout, planes = family.layout, family.dimensions.planes
    at = torch.tensor(layout.vision_rows)
    with held(vision, projector, embed):  # a streamed model is read once for all samples
        for sample in samples:
            pixels = pixel_values(load_image(sample.image), family.preprocess).repeat(layout.images, axis=0)
            encoded = vision(torch.from_numpy(pixels))
            features, *read = encoded if isinstance(encoded, tuple) else (encoded,)
            ids = torch.tensor([[*layout.ids(family.prompt.pad), *tokenizer.first(sample.question)]])
            tokens, *read = (x.flatten(0, 1)[None] for x in (projector(features), *read))
            yield Start(embed(ids).index_copy(1, at, tokens), tuple(read[:planes]), tuple(read[planes:]))


def walk(family: Family, start: Sequence[Start], views: Sequence[View]) -> Iterator[LayerRows]:
    """The rows that enter each decoder layer, of every view of every sample as if it were the only one."""
    for number, rows in entering(family, list(start)):
        yield LayerRows(
            number,
            [only(each, family.layout, view) for each in rows for view in views],
            family.decoder.projections(number),
        )


def only(rows: Tensor, layout: Layout, view: View) -> Tensor:
    """Rows [1, S, D] without the other views and the text between them, see `Layout.alone`."""
    if len(layout.views) == 1:
        return rows
    chosen = [*range(layout.image_start), *view.rows, *range(layout.rows, rows.shape[1])]
    return rows[:, chosen]


@torch.no_grad()
def entering(
    family: Family,
    start: list[Start],
    passed: Callable[[Passage], None] = lambda passage: None,
    state: tuple[int, list[Tensor]] | None = None,
) -> Iterator[tuple[int, list[Tensor]]]:
    """Each layer's number and the rows that enter it, whole; the list is the walk's own, which replaces what is in it.

    start   of every sample; it is emptied, so that nothing is held that no layer needs any longer
    passed  is told of every sample's way through the layer whose rows were just given
    state   number of the layer to begin with, and the rows that enter it, a list to be used up; None: the first
    """
    decoder, at = family.decoder, torch.tensor(family.layout.vision_rows)
    first, rows = state or (0, [each.rows for each in start])
    planes = [list(each.planes[first:]) for each in start]
    start.clear()
    for number in range(first, len(decoder.layers)):
        with held(decoder.layers[number]):  # of a streamed model, all samples pass while the layer is in memory
            yield number, rows
            for sample, before in enumerate(rows):
                tap = attention.Tap()
                position_ids = positions(family.layout, before.shape[1])
                after = run(decoder, (number,), before, position_ids, tap)
                if planes[sample]:
                    after = after.index_add(1, at, planes[sample].pop(0))
                rows[sample] = after
                assert tap.query is not None
                passed(Passage(number, sample, before, after, tap.query, tap.rows[number][0]))


def positions(layout: Layout, rows: int) -> Tensor:
    """Position ids of a prompt, [1, rows], with M-RoPE [3, 1, rows]."""
    found = torch.tensor(layout.numbered(rows))
    return found[:, None] if len(found) > 1 else found


@torch.no_grad()
def run(
    decoder: Decoder, numbers: Iterable[int], rows: Tensor, position_ids: Tensor, tap: attention.Tap | None = None
) -> Tensor:
    """Rows [B, S, D] at `position_ids` through the layers `numbers`, each row seeing those before it, or all."""
    count = rows.shape[1]
    mask = attention.additive_mask(torch.ones(1, count), count, 0, rows.dtype, decoder.bidirectional)
    position_embeddings = decoder.rotary(rows, position_ids)
    with attention.active(decoder.config):
        for number in numbers:
            layer = decoder.layers[number]
            rows = attention.run_layer(layer, rows, mask, position_ids, position_embeddings, tap or attention.Tap())
    return rows
