# SPDX-License-Identifier: Apache-2.0
"""Run calibration samples through the unpruned model, one decoder layer at a time.

Memory: one layer of a streamed model, one hidden state per sample, and the DeepStack planes that are not added yet. A
caller that runs the layers more than once keeps the input rows of layer 0 too.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from secateur.bundle.layout import Layout, View
from secateur.calibration.samples import Sample
from secateur.checkpoints.streaming import held
from secateur.decoder import attention
from secateur.decoder.pieces import Decoder
from secateur.errors import BadPrompt
from secateur.families.base import Family
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from secateur.selection.statistics import LayerRows


class Passage(NamedTuple):
    """Inputs and outputs of one decoder layer for one sample.

    number, sample  index of the layer and of the sample
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
        """Return the passage without the other views and the text between them."""
        if len(layout.views) == 1:
            return self
        before, after = (only(rows, layout, view) for rows in (self.before, self.after))
        query = only(self.query.transpose(1, 2), layout, view).transpose(1, 2)
        key = only(self.key.transpose(0, 1), layout, view).transpose(0, 1)
        return Passage(self.number, self.sample, before, after, query, key)


class Start(NamedTuple):
    """Input of the decoder for one sample.

    rows    input rows of layer 0 [1, S, D]: text, images, question
    planes  DeepStack planes [1, N, D], one added to the vision rows after each of the first layers
    read    scores [1, N] of the encoder
    """

    rows: Tensor
    planes: tuple[Tensor, ...] = ()
    read: tuple[Tensor, ...] = ()


@torch.no_grad()
def prompts(family: Family, samples: Iterable[Sample], reads: tuple[str, ...] = ()) -> Iterator[Start]:
    """Encode each sample: its decoder input, and the encoder scores named in `reads` (see `selector.Selector`).

    If the prompt has several images, all of them are the sample's image.

    Raises:
        BadImage: the file of a sample is damaged.
        BadPrompt: the question of a sample is empty, or too long for the model; known before any is encoded.
    """
    samples = list(samples)
    tokenizer = Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))
    questions = [_question(sample, tokenizer, family) for sample in samples]
    vision, projector, embed = family.vision(reads), family.projector(), family.embed()
    layout, planes = family.layout, family.dimensions.planes
    at = torch.tensor(layout.vision_rows)
    with held(vision, projector, embed):  # weights of a streamed model are read once for all samples
        for sample, question in zip(samples, questions, strict=True):
            pixels = pixel_values(load_image(sample.image), family.preprocess).repeat(layout.images, axis=0)
            encoded = vision(torch.from_numpy(pixels))
            features, *read = encoded if isinstance(encoded, tuple) else (encoded,)
            ids = torch.tensor([[*layout.ids(family.prompt.pad), *question]])
            tokens, *read = (x.flatten(0, 1)[None] for x in (projector(features), *read))
            yield Start(embed(ids).index_copy(1, at, tokens), tuple(read[:planes]), tuple(read[planes:]))


def _question(sample: Sample, tokenizer: Tokenizer, family: Family) -> list[int]:
    """Return the token ids after the images, if the prompt fits the model."""
    layout, context = family.layout, family.dimensions.context
    try:
        ids = tokenizer.first(sample.question)
    except BadPrompt as problem:
        raise BadPrompt(f"{sample.where}: {problem}") from None
    if (needed := layout.positions_used(layout.rows + len(ids))) > context:
        raise BadPrompt(
            f"{sample.where}: the prompt needs {needed} positions with its images, the model has {context}; shorten "
            "the text, or leave it out"
        )
    return ids


def walk(family: Family, start: Sequence[Start], views: Sequence[View]) -> Iterator[LayerRows]:
    """Yield the input rows of each decoder layer, of every view of every sample as if it were the only view."""
    for number, rows, passages in layers(family, list(start)):
        yield LayerRows(
            number,
            [only(each, family.layout, view) for each in rows for view in views],
            family.decoder.projections(number),
        )
        for _ in passages:
            pass


def only(rows: Tensor, layout: Layout, view: View) -> Tensor:
    """Rows [1, S, D] without the other views and the text between them, see `Layout.alone`."""
    if len(layout.views) == 1:
        return rows
    chosen = [*range(layout.image_start), *view.rows, *range(layout.rows, rows.shape[1])]
    return rows[:, chosen]


def layers(
    family: Family, start: list[Start], state: tuple[int, list[Tensor]] | None = None
) -> Iterator[tuple[int, list[Tensor], Iterator[Passage]]]:
    """Yield each decoder layer: its number, the input rows of each sample, and the samples' passages through it.

    The caller consumes the passages, which replace the rows in the list: this is what runs the layer.

    start   is emptied, so that no rows are held that no layer needs any longer
    state   number of the first layer and its input rows, a list that is used up; None: layer 0
    """
    decoder = family.decoder
    first, rows = state or (0, [each.rows for each in start])
    planes = [list(each.planes[first:]) for each in start]
    start.clear()
    for number in range(first, len(decoder.layers)):
        with held(decoder.layers[number]):  # a layer of a streamed model is read once for all samples
            yield number, rows, _passages(family, number, rows, planes)


@torch.no_grad()
def _passages(family: Family, number: int, rows: list[Tensor], planes: list[list[Tensor]]) -> Iterator[Passage]:
    """Run layer `number` on each sample and replace its rows; take one of its DeepStack planes, if any is left."""
    at = torch.tensor(family.layout.vision_rows)
    for sample, before in enumerate(rows):
        tap = attention.Tap()
        after = run(family.decoder, (number,), before, positions(family.layout, before.shape[1]), tap)
        if planes[sample]:
            after = after.index_add(1, at, planes[sample].pop(0))
        rows[sample] = after
        assert tap.query is not None
        yield Passage(number, sample, before, after, tap.query, tap.rows[number][0])


def positions(layout: Layout, rows: int) -> Tensor:
    """Return the position ids of a prompt: [1, rows], or [3, 1, rows] with M-RoPE."""
    found = torch.tensor(layout.numbered(rows))
    return found[:, None] if len(found) > 1 else found


@torch.no_grad()
def run(
    decoder: Decoder, numbers: Iterable[int], rows: Tensor, position_ids: Tensor, tap: attention.Tap | None = None
) -> Tensor:
    """Run rows [B, S, D] at `position_ids` through the layers `numbers`, with the decoder's own mask."""
    count = rows.shape[1]
    mask = attention.additive_mask(torch.ones(1, count), count, 0, rows.dtype, decoder.bidirectional)
    position_embeddings = decoder.rotary(rows, position_ids)
    with attention.active(decoder.config):
        for number in numbers:
            layer = decoder.layers[number]
            rows = attention.run_layer(layer, rows, mask, position_embeddings, tap or attention.Tap())
    return rows
