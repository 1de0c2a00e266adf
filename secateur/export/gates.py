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

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from secateur.export.spans import Span, Spans
from secateur.methods.base import GateInputs, Selector, gather

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
        spans, given = self.spans, []
        for selector, view, index in zip(self.each, spans.views, spans.index(vision_index), strict=True):
            positions = by_axis(spans.alone(by_row(position_ids), view))
            own = {name: _alone(spans, view, name, read[name]) for name in selector.reads}
            rows = [spans.alone(x, view) for x in (hidden_states, attention_mask)]
            given.append(GateInputs(rows[0], positions, rows[1], index, spans.views[0].start, own))
        slots, kept = choose(self.each, given)
        return (
            spans.replaced(hidden_states, kept),
            self._positions(position_ids, slots),
            spans.replaced(attention_mask, spans.pick(attention_mask, slots)),
            chosen_index(vision_index, slots, [view.tokens for view in spans.views]),
            *(spans.replaced(plane, spans.pick(plane, slots)) for plane in planes),
        )

    def _positions(self, position_ids: Tensor, slots: Sequence[Tensor]) -> Tensor:
        if self.compact:  # rows are numbered one after the other, so that the first numbers are those that are left
            dropped = self.spans.tokens - sum(chosen.shape[1] for chosen in slots)
            return position_ids[:, : position_ids.shape[1] - dropped]
        rows = by_row(position_ids)
        return by_axis(self.spans.replaced(rows, self.spans.pick(rows, slots)))


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
        given = []
        for selector, view, index in zip(self.each, self.spans.views, self.spans.index(vision_index), strict=True):
            own = {name: read[name][:, view.rows] for name in selector.reads}
            given.append(GateInputs(features[:, view.rows], index, torch.ones_like(index), index, 0, own))
        slots, kept = choose(self.each, given)
        return (
            torch.cat(kept, dim=1),
            chosen_index(vision_index, slots, [view.tokens for view in self.spans.views]),
            *(torch.cat(self.spans.pick(plane, slots), dim=1) for plane in planes),
        )


def choose(selectors: Sequence[Selector], given: Sequence[GateInputs]) -> tuple[list[Tensor], list[Tensor]]:
    """Of each view the slots [B, k], and the rows [B, k, D] that go on.

    Views with the same selector are asked as one batch, so that a graph does not grow with the number of tiles.
    """
    found: dict[int, tuple[Tensor, Tensor]] = {}
    for selector in dict.fromkeys(selectors):
        views = [view for view, other in enumerate(selectors) if other is selector]
        both = selector.kept(_batch([given[view] for view in views]))
        slots, kept = (_apart(x, len(views), given[0].hidden_states.shape[0]) for x in both)
        found |= zip(views, zip(slots, kept, strict=True), strict=True)
    of_views = [found[view] for view in range(len(given))]
    return [slots for slots, _ in of_views], [kept for _, kept in of_views]


def _batch(given: Sequence[GateInputs]) -> GateInputs:
    """Views of one size as samples, one view behind the other."""
    if len(given) == 1:
        return given[0]
    hidden, positions, mask, index = (list(tensors) for tensors in zip(*(each[:4] for each in given), strict=True))
    read = {name: torch.cat([each.read[name] for each in given], dim=int(name in ROWS_FIRST)) for name in given[0].read}
    samples = positions[0].dim() - 2
    first = given[0].image_start
    return GateInputs(
        torch.cat(hidden), torch.cat(positions, dim=samples), torch.cat(mask), torch.cat(index), first, read
    )


def _apart(rows: Tensor, views: int, samples: int) -> Sequence[Tensor]:
    """The inverse of `_batch` for one tensor: [V*B, ...] as [B, ...] of each view."""
    return [rows] if views == 1 else rows.reshape(views, samples, *rows.shape[1:]).unbind()


def names(selectors: Sequence[Selector]) -> tuple[str, ...]:
    """What any of the selectors reads, in the order of the graph's inputs."""
    return tuple(dict.fromkeys(name for selector in selectors for name in selector.reads))


def chosen_index(vision_index: Tensor, slots: Sequence[Tensor], tokens: Sequence[int]) -> Tensor:
    """Indices [B, k] of the tokens at `slots` of each view, among all [B, N]."""
    parts = vision_index.split(list(tokens), dim=1)
    return torch.cat([gather(part, chosen) for part, chosen in zip(parts, slots, strict=True)], dim=1)


def by_row(position_ids: Tensor) -> Tensor:
    """Positions with the rows on the second axis: [B, S] as it is, [3, B, S] as [B, S, 3]."""
    return position_ids if position_ids.dim() == 2 else position_ids.permute(1, 2, 0)


def by_axis(positions: Tensor) -> Tensor:
    """The inverse of `by_row`."""
    return positions if positions.dim() == 2 else positions.permute(2, 0, 1)


def _alone(spans: Spans, view: Span, name: str, read: Tensor) -> Tensor:
    """What a selector of one view reads."""
    if name in ROWS_FIRST and len(spans.views) > 1:
        return spans.alone(read.transpose(0, 1), view).transpose(0, 1)
    return spans.alone(read, view) if name == "layer_input" else read
