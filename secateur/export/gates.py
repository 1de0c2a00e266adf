# SPDX-License-Identifier: Apache-2.0
"""Gates: the method selects the tokens, the gate removes or moves rows, positions, masks and indices.

PruneGate, between two segments
    hidden_states [B, S, D], position_ids [B, S], attention_mask [B, S], vision_index [B, N], planes [B, S, D], and
    the tensors read by the selectors
    -> hidden_states, position_ids, attention_mask and planes [B, S - N + k, ...], vision_index [B, k]
EncoderGate, after the vision encoder
    features [B, N, Dv], vision_index [B, N], planes [B, N, D], and the tensors read by the selectors
    -> features [B, k, Dv], vision_index [B, k], planes [B, k, D]
RouteGate, between two segments: some vision tokens go through the next layers, the others skip them unchanged (ALVTS)
    full_states [B, S, D]         the full stream at the previous gate
    hidden_states [B, S-N+k', D]  the rows selected by the previous gate, after the layers since then
    vision_index [B, k']          vision indices of these rows
    full_position_ids, full_attention_mask [B, S], full planes [B, S, D] of the layers since the previous gate, which
                                  skipped rows get too, and of those that follow
    -> full_states [B, S, D] and the outputs of a PruneGate
    The first gate of a schedule has no previous gate: it takes hidden_states [B, S, D] and returns no full_states.

Each view of a prompt is pruned separately, with its own quota: a selector sees the text and one view, or a batch of
views that share the selector. Rows keep their order and, unless positions are compact, their original positions, so
the lower triangle is still the correct causal mask. With M-RoPE position_ids are [3, B, S].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from secateur.export.spans import Spans, repeat_for_views, take_rows
from secateur.selection.selector import GateInputs, Selector
from secateur.selection.topk import gather

ROWS_FIRST = ("queries", "key")
"""Tensors read by selectors whose first axis is the row."""


class SelectingGate(nn.Module):
    """Base class of gates: selectors, one per view, and the spans of the views before the gate.

    Views of equal size and settings share a selector.
    """

    def __init__(self, selectors: Sequence[Selector], spans: Spans) -> None:
        super().__init__()
        self.selectors, self.each = nn.ModuleList(selectors), tuple(selectors)
        self.reads = tensors_read(selectors)
        self.spans = spans


class PruneGate(SelectingGate):
    """A gate in the decoder; all counts and offsets are constants of the graph.

    planes   number of DeepStack planes added by later layers
    compact  renumber the positions of the kept rows without gaps
    """

    def __init__(self, selectors: Sequence[Selector], spans: Spans, planes: int = 0, compact: bool = False) -> None:
        super().__init__(selectors, spans)
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
                spans.text_and_views(hidden_states, views),
                by_axis(spans.text_and_views(by_row(position_ids), views)),
                spans.text_and_views(attention_mask, views),
                spans.index(vision_index, views),
                spans.start,
                {name: _read_of_views(spans, views, name, read[name]) for name in self.each[views[0]].reads},
            )

        chosen = choose_tokens(self.each, spans, given)
        picked = (attention_mask, *planes)
        mask, *added = (spans.replace_views(x, spans.pick(x, chosen.rows), chosen.quotas) for x in picked)
        return (
            spans.replace_views(hidden_states, chosen.kept, chosen.quotas),
            self._positions(position_ids, chosen),
            mask,
            gather(vision_index, chosen.places),
            *added,
        )

    def _positions(self, position_ids: Tensor, chosen: GateChoice) -> Tensor:
        if self.compact:  # rows are numbered without gaps, so the kept rows get the first numbers
            dropped = self.spans.tokens - sum(chosen.quotas)
            return position_ids[:, : position_ids.shape[1] - dropped]
        rows = by_row(position_ids)
        return by_axis(self.spans.replace_views(rows, self.spans.pick(rows, chosen.rows), chosen.quotas))


class EncoderGate(SelectingGate):
    """A gate between the vision encoder and the projector; each image of the batch is pruned separately."""

    def __init__(self, selectors: Sequence[Selector], spans: Spans, planes: int = 0) -> None:
        super().__init__(selectors, spans)
        self.planes = planes

    def forward(self, features: Tensor, vision_index: Tensor, *further: Tensor) -> tuple[Tensor, ...]:
        planes, read = further[: self.planes], dict(zip(self.reads, further[self.planes :], strict=True))
        spans = self.spans

        def given(views: Sequence[int]) -> GateInputs:
            own = {name: spans.view_rows(read[name], views) for name in self.each[views[0]].reads}
            index = spans.index(vision_index, views)
            return GateInputs(spans.view_rows(features, views), index, torch.ones_like(index), index, 0, own)

        chosen = choose_tokens(self.each, spans, given)
        return (
            chosen.kept,
            gather(vision_index, chosen.places),
            *(gather(plane, chosen.places) for plane in planes),
        )


class RouteGate(SelectingGate):
    """A gate that writes the rows computed since the previous gate back into the full stream, and selects again.

    arXiv 2606.14277, section 3.2. All counts are constants of the graph.

    spans    the complete views
    before   the views as left by the previous gate; None for the first gate
    skipped  number of DeepStack planes that layers since the previous gate added to the rows that went through them
    """

    def __init__(self, selectors: Sequence[Selector], spans: Spans, before: Spans | None, skipped: int = 0) -> None:
        super().__init__(selectors, spans)
        self.before, self.skipped = before, skipped

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        if self.before is None:
            full, positions, mask, *planes = tensors
            return self._choose(full, positions, mask, planes)
        full, compact, index, positions, mask, *planes = tensors
        for plane in planes[: self.skipped]:
            full = full + plane
        full, planes = self._put_back(full, compact, index, self.before), planes[self.skipped :]
        return (full, *self._choose(full, positions, mask, planes))

    def _choose(self, full: Tensor, positions: Tensor, mask: Tensor, planes: Sequence[Tensor]) -> tuple[Tensor, ...]:
        spans, tokens = self.spans, [view.tokens for view in self.spans.views]

        def given(views: Sequence[int]) -> GateInputs:
            rows, own_mask = (spans.text_and_views(x, views) for x in (full, mask))
            every = torch.arange(tokens[views[0]], device=full.device).expand(rows.shape[0], -1)
            return GateInputs(
                rows, by_axis(spans.text_and_views(by_row(positions), views)), own_mask, every, spans.start, {}
            )

        chosen = choose_tokens(self.each, spans, given)

        def compact(rows: Tensor) -> Tensor:
            return spans.replace_views(rows, spans.pick(rows, chosen.rows), chosen.quotas)

        return (
            compact(full),
            by_axis(compact(by_row(positions))),
            compact(mask),
            chosen.places,
            *(compact(plane) for plane in planes),
        )

    def _put_back(self, full: Tensor, compact: Tensor, index: Tensor, before: Spans) -> Tensor:
        """Return the full stream with the compact rows written back, as one Gather from the rows of both.

        TensorRT makes two kernels of it, and four of a ScatterND.
        """
        batch, count = compact.shape[:2]
        spans, quotas = self.spans, [view.tokens for view in before.views]
        rows = (torch.arange(spans.stop, device=full.device) - spans.start).expand(batch, -1)
        changed, region = spans.merge_with_text(rows, spans.places_to_rows(index, quotas), quotas), spans.region(rows)
        source = region + (count + spans.start)
        if changed.shape[1]:
            # In fp32, which ONNX Runtime compares faster than int64; exact below 2**24 rows.
            found = changed.float()[:, None] == region.float()[..., None]
            ours = torch.arange(before.start, before.stop, dtype=torch.float32, device=full.device)
            source = torch.where(found, ours, source.float()[..., None]).amin(2).long()
        every = torch.arange(count, device=full.device).expand(batch, -1)
        return gather(
            torch.cat([compact, full], dim=1), torch.cat([every[:, : before.start], source, every[:, before.stop :]], 1)
        )


class GateChoice(NamedTuple):
    """The tokens kept by the selectors of a gate.

    places  [B, K]     index of each token among the tokens before the gate
    rows    [B, K]     row of each token within the region, see spans.py
    kept    [B, K, D]  hidden states of the tokens
    quotas  tokens kept of each view
    """

    places: Tensor
    rows: Tensor
    kept: Tensor
    quotas: tuple[int, ...]


def choose_tokens(
    selectors: Sequence[Selector], spans: Spans, inputs: Callable[[Sequence[int]], GateInputs]
) -> GateChoice:
    """Run each selector once, on all its views as one batch.

    inputs  returns the inputs of a selector for these views
    """
    if len(selectors) == 1:
        slots, left = selectors[0].kept(inputs([0]))
        return GateChoice(slots, slots, left, (slots.shape[1],))
    groups = [[v for v, other in enumerate(selectors) if other is selector] for selector in dict.fromkeys(selectors)]
    places, kept, quotas, owner = [], [], dict[int, int](), []
    for views in groups:
        given = inputs(views)
        slots, left = selectors[views[0]].kept(given)
        batch, count = given.vision_index.shape[0] // len(views), slots.shape[1]
        if count:
            places.append(spans.places(slots.reshape(batch, len(views), count), views))
            kept.append(left.reshape(batch, len(views) * count, left.shape[2]))
        else:  # ONNX cannot reshape an empty tensor to a dynamic batch size
            places.append(slots[:: len(views)])
            kept.append(left[:: len(views)])
        quotas |= dict.fromkeys(views, count)
        owner += [view for view in views for _ in range(count)]
    order = sorted(range(len(owner)), key=owner.__getitem__)
    per_view = tuple(quotas[view] for view in range(len(selectors)))
    at, left = (take_rows(torch.cat(parts, dim=1), order) for parts in (places, kept))
    return GateChoice(at, spans.places_to_rows(at, per_view), left, per_view)


def tensors_read(selectors: Sequence[Selector]) -> tuple[str, ...]:
    """Return the names of the tensors read by the selectors, in the order of the graph's inputs."""
    return tuple(dict.fromkeys(name for selector in selectors for name in selector.reads))


def by_row(position_ids: Tensor) -> Tensor:
    """Return positions with the rows on the second axis: [B, S] unchanged, [3, B, S] as [B, S, 3]."""
    return position_ids if position_ids.dim() == 2 else position_ids.permute(1, 2, 0)


def by_axis(positions: Tensor) -> Tensor:
    """Undo `by_row`."""
    return positions if positions.dim() == 2 else positions.permute(2, 0, 1)


def _read_of_views(spans: Spans, views: Sequence[int], name: str, read: Tensor) -> Tensor:
    """Return the part of a tensor that a selector reads for its views."""
    if len(spans.views) == 1:
        return read
    if name in ROWS_FIRST:
        return spans.text_and_views(read.transpose(0, 1), views).transpose(0, 1)
    if name == "layer_input":
        return spans.text_and_views(read, views)
    return repeat_for_views(read, len(views)).flatten(0, 1)
