# SPDX-License-Identifier: Apache-2.0
"""Gates that drop tokens: a method chooses, and rows, positions, masks and indices follow. Once for all methods.

Prune, between two segments
    hidden_states [B, S, D], position_ids [B, S], attention_mask [B, S], vision_index [B, N], planes [B, S, D], and
    what the selectors read
    -> the same without what they read and without the dropped rows: [B, S - N + k, ...], vision_index [B, k]
Encoder, behind the vision encoder
    features [B, N, Dv], vision_index [B, N], planes [B, N, D], and what the selectors read
    -> features [B, k, Dv], vision_index [B, k], planes [B, k, D]

Every view of a prompt is pruned by itself, with a quota of its own: a selector sees the text and one view, or a batch
of views that are alike. Rows keep their order and, unless positions are compact, their original positions, so the plain
lower triangle stays the right causal mask. With M-RoPE position_ids are [3, B, S].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.export.spans import Spans, of_each, taken
from secateur.selection.selector import GateInputs, Selector
from secateur.selection.topk import gather

ROWS_FIRST = ("queries", "key")
"""What is read of every row, with the rows on the first axis."""


class Prune(nn.Module):
    """A gate in the decoder; all counts and places are constants of the graph.

    selectors  one for each view, the same one for those that are alike
    planes     how many DeepStack planes are still to be added
    compact    count the rows that stay anew: what stands behind a dropped one moves up
    """

    def __init__(self, selectors: Sequence[Selector], spans: Spans, planes: int = 0, compact: bool = False) -> None:
        super().__init__()
        self.selectors, self.each = nn.ModuleList(selectors), tuple(selectors)
        self.reads = names(selectors)
        self.spans = spans
        self.planes = planes
        self.compact = compact

    def forward(
        self,
        hidden_states: Tensor,
        position_ids: Tensor,
        attention_mask: Tensor,
        vision_index: Tensor,
        *further: Tensor,
    ) -> tuple[Tensor, ...]:
        planes, read = further[: self.planes], dict(zip(self.reads, further[self.planes :], strict=True))
        spans = self.spans

        def given(views: Sequence[int]) -> GateInputs:
            return GateInputs(
                spans.alone(hidden_states, views),
                by_axis(spans.alone(by_row(position_ids), views)),
                spans.alone(attention_mask, views),
                spans.index(vision_index, views),
                spans.start,
                {name: _alone(spans, views, name, read[name]) for name in self.each[views[0]].reads},
            )

        chosen = choose(self.each, spans, given)
        picked = (attention_mask, *planes)
        mask, *added = (spans.replaced(x, spans.pick(x, chosen.rows), chosen.quotas) for x in picked)
        return (
            spans.replaced(hidden_states, chosen.kept, chosen.quotas),
            self._positions(position_ids, chosen),
            mask,
            gather(vision_index, chosen.places),
            *added,
        )

    def _positions(self, position_ids: Tensor, chosen: GateChoice) -> Tensor:
        if self.compact:  # rows are numbered one after the other, so that the first numbers are those that are left
            dropped = self.spans.tokens - sum(chosen.quotas)
            return position_ids[:, : position_ids.shape[1] - dropped]
        rows = by_row(position_ids)
        return by_axis(self.spans.replaced(rows, self.spans.pick(rows, chosen.rows), chosen.quotas))


class Encoder(nn.Module):
    """A gate between the vision encoder and the projector: each image of the batch is pruned by itself.

    selectors  one for each view of an image, the same one for those that are alike
    """

    def __init__(self, selectors: Sequence[Selector], spans: Spans, planes: int = 0) -> None:
        super().__init__()
        self.selectors, self.each = nn.ModuleList(selectors), tuple(selectors)
        self.reads = names(selectors)
        self.spans = spans
        self.planes = planes

    def forward(self, features: Tensor, vision_index: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
        planes, read = further[: self.planes], dict(zip(self.reads, further[self.planes :], strict=True))
        spans = self.spans

        def given(views: Sequence[int]) -> GateInputs:
            own = {name: spans.own(read[name], views) for name in self.each[views[0]].reads}
            index = spans.index(vision_index, views)
            return GateInputs(spans.own(features, views), index, torch.ones_like(index), index, 0, own)

        chosen = choose(self.each, spans, given)
        return (
            chosen.kept,
            gather(vision_index, chosen.places),
            *(gather(plane, chosen.places) for plane in planes),
        )


class GateChoice(NamedTuple):
    """What selectors chose.

    places  [B, K]     of the tokens among all that are alive
    rows    [B, K]     of the tokens within the region, see spans.py
    kept    [B, K, D]  rows that go on
    quotas  tokens of each view
    """

    places: Tensor
    rows: Tensor
    kept: Tensor
    quotas: tuple[int, ...]


def choose(selectors: Sequence[Selector], spans: Spans, given: Callable[[Sequence[int]], GateInputs]) -> GateChoice:
    """Ask each selector once, for all its views together.

    given  what views of one size are for their selector
    """
    if len(selectors) == 1:
        slots, left = selectors[0].kept(given([0]))
        return GateChoice(slots, slots, left, (slots.shape[1],))
    groups = [[v for v, other in enumerate(selectors) if other is selector] for selector in dict.fromkeys(selectors)]
    places, kept, quotas, owner = [], [], dict[int, int](), []
    for views in groups:
        asked = given(views)
        slots, left = selectors[views[0]].kept(asked)
        batch, count = asked.vision_index.shape[0] // len(views), slots.shape[1]
        if count:
            places.append(spans.places(slots.reshape(batch, len(views), count), views))
            kept.append(left.reshape(batch, len(views) * count, left.shape[2]))
        else:  # ONNX cannot reshape what is empty to a batch of any size
            places.append(slots[:: len(views)])
            kept.append(left[:: len(views)])
        quotas |= dict.fromkeys(views, count)
        owner += [view for view in views for _ in range(count)]
    order = sorted(range(len(owner)), key=owner.__getitem__)
    of_each = tuple(quotas[view] for view in range(len(selectors)))
    at, left = (taken(torch.cat(parts, dim=1), order) for parts in (places, kept))
    return GateChoice(at, spans.moved(at, of_each), left, of_each)


def names(selectors: Sequence[Selector]) -> tuple[str, ...]:
    """What any of the selectors reads, in the order of the graph's inputs."""
    return tuple(dict.fromkeys(name for selector in selectors for name in selector.reads))


def by_row(position_ids: Tensor) -> Tensor:
    """Positions with the rows on the second axis: [B, S] as it is, [3, B, S] as [B, S, 3]."""
    return position_ids if position_ids.dim() == 2 else position_ids.permute(1, 2, 0)


def by_axis(positions: Tensor) -> Tensor:
    """The inverse of `by_row`."""
    return positions if positions.dim() == 2 else positions.permute(2, 0, 1)


def _alone(spans: Spans, views: Sequence[int], name: str, read: Tensor) -> Tensor:
    """What a selector reads of its views."""
    if len(spans.views) == 1:
        return read
    if name in ROWS_FIRST:
        return spans.alone(read.transpose(0, 1), views).transpose(0, 1)
    return spans.alone(read, views) if name == "layer_input" else of_each(read, len(views)).flatten(0, 1)
