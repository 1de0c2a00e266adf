# SPDX-License-Identifier: Apache-2.0
"""Run samples through the model as a schedule prunes it, without a graph: eager, one decoder layer at a time.

The rows are gathered after each gate, as in a bundle. Each view of a prompt is pruned by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from secateur import methods, plugins
from secateur.bundle.layout import Layout, View
from secateur.bundle.schedule import Gate, Schedule, ViewGate
from secateur.calibration.layer_walk import positions, run
from secateur.calibration.samples import Sample
from secateur.checkpoints.streaming import held
from secateur.decoder.attention import Tap
from secateur.families.base import Family
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from secateur.selection.selector import GateInputs, GateSite, Selector


class DecoderInput(NamedTuple):
    """One sample as it enters the decoder under one schedule.

    rows    input rows of layer 0 [1, S, D]
    at      row of the unpruned prompt of each of them [S], ascending
    planes  DeepStack planes [1, N, D] of all vision tokens of the prompt
    """

    rows: Tensor
    at: Tensor
    planes: tuple[Tensor, ...]


class Selectors:
    """The selectors of a schedule; those of the last gate are kept for the next sample."""

    def __init__(self, family: Family, schedule: Schedule) -> None:
        self.family, self.schedule = family, schedule
        self._method = plugins.load(methods, schedule.method, "method").Method
        self._last: tuple[Gate, Sequence[int], list[Selector]] | None = None

    def gate(self, layer: int, kind: str) -> Gate | None:
        """Return the gate of this kind at `layer`."""
        return next((gate for gate in self.schedule.gates if (gate.layer, gate.kind) == (layer, kind)), None)

    def of(self, gate: Gate, alive: Sequence[int]) -> list[Selector]:
        """Return a selector for each view with `alive` tokens before the gate; alike views share one."""
        if self._last is not None and self._last[:2] == (gate, alive):
            return self._last[2]
        family, made, found = self.family, dict[str, Selector](), list[Selector]()
        projections = family.decoder.projections(gate.layer) if gate.kind == "route" else None
        for part, view, tokens in zip(gate.of_views, family.layout.views, alive, strict=False):
            key = str((part, view.grid, tokens))
            if key not in made:
                alone = Gate(gate.layer, part.keep, gate.kind, part.selector)
                start, tensors = family.layout.image_start, self._tensors(part)
                site = GateSite(alone, tokens, start, view.grid, family.dimensions, tensors, projections)
                made[key] = self._method.choose(site)
            found.append(made[key])
        self._last = gate, alive, found
        return found

    def _tensors(self, part: ViewGate) -> dict[str, Any]:
        named = self.schedule.tensors.items()
        return {name.removeprefix(part.tensors): x for name, x in named if name.startswith(part.tensors)}


@torch.no_grad()
def pruned_prompts(
    family: Family, samples: Sequence[Sample], schedules: Sequence[Sequence[Selectors]]
) -> Iterator[list[DecoderInput]]:
    """Encode each sample, and yield its prompt under each of its own schedules, after a gate in the encoder.

    If the prompt has several images, all of them are the sample's image.

    Raises:
        BadImage: the file of a sample is damaged.
    """
    layout, planes = family.layout, family.dimensions.planes
    embed, projector = family.embed(), family.projector()
    tokenizer = Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))
    whole, every = [view.tokens for view in layout.image_views], {each for own in schedules for each in own}
    chosen = {each: each.of(gate, whole) for each in every if (gate := each.gate(0, "vision"))}
    reads = tuple(sorted({name for found in chosen.values() for selector in found for name in selector.reads}))
    smaller = {_grid(gate) for each in every if (gate := each.gate(0, "downsample"))}
    vision, encoders = family.vision(reads), {grid: family.vision(grid=grid) for grid in smaller}
    with held(vision, projector, embed, *encoders.values()):  # weights of a streamed model are read once
        for sample, own in zip(samples, schedules, strict=True):
            rows = embed(torch.tensor([[*layout.ids(family.prompt.pad), *tokenizer.first(sample.question)]]))
            pixels = torch.from_numpy(pixel_values(load_image(sample.image), family.preprocess))
            encoded = vision(pixels)
            features, *further = encoded if isinstance(encoded, tuple) else (encoded,)
            scores = dict(zip(reads, further[planes:], strict=True))
            prompts = []
            for each in own:
                kept, numbers = features, torch.arange(features.shape[1])
                if gate := each.gate(0, "downsample"):
                    kept, index = encoders[_grid(gate)](pixels)
                    numbers = index[0]
                elif each in chosen:
                    kept, numbers = _encoder_gate(layout, features, scores, chosen[each])
                prompts.append(_prompt(layout, rows, projector(kept)[0], numbers, further[:planes]))
            yield prompts


def _grid(gate: Gate) -> tuple[int, int]:
    rows, columns = gate.of_views[0].selector["grid"]
    return rows, columns


def _encoder_gate(
    layout: Layout, features: Tensor, read: dict[str, Tensor], selectors: Sequence[Selector]
) -> tuple[Tensor, Tensor]:
    """Return the kept features [1, k, Dv] of one image, and their numbers [k], ascending."""
    kept, numbers = list[Tensor](), list[Tensor]()
    for selector, members in zip(selectors, layout.members, strict=False):
        own = torch.from_numpy(members)
        index = torch.arange(len(own))[None]
        scores = {name: read[name][:, own] for name in selector.reads}
        slots, rows = selector.kept(GateInputs(features[:, own], index, torch.ones_like(index), index, 0, scores))
        kept.append(rows)
        numbers.append(own[slots[0]])
    found = torch.cat(numbers)
    order = found.argsort()
    return torch.cat(kept, 1)[:, order], found[order]


def _prompt(layout: Layout, rows: Tensor, tokens: Tensor, numbers: Tensor, planes: Sequence[Tensor]) -> DecoderInput:
    """Return the prompt with the vision tokens [k, D] of one image at the places `numbers` [k] of every image."""
    vision, images = torch.tensor(layout.vision_rows), layout.images
    every = torch.cat([numbers + image * layout.image_tokens for image in range(images)])
    rows = rows.index_copy(1, vision[every], tokens.repeat(images, 1)[None])
    there = torch.ones(rows.shape[1], dtype=torch.bool).index_fill(0, vision, False).index_fill(0, vision[every], True)
    at = there.nonzero()[:, 0]
    return DecoderInput(rows[:, at], at, tuple(plane.repeat(1, images, 1) for plane in planes))


class PrunedRun:
    """One sample on its way through the layers: `rows` [1, S, D], and their rows `at` [S] of the unpruned prompt.

    A token that skips a layer stays in `rows`, one that is dropped does not.
    """

    def __init__(self, prompt: DecoderInput, selectors: Selectors) -> None:
        self.selectors, self.decoder, self.layout = selectors, selectors.family.decoder, selectors.family.layout
        self.rows, self.at, self.planes = prompt.rows, prompt.at, prompt.planes
        self.taken: Tensor | None = None  # places of the rows that go through the next layers; None: all
        self._vision, self._length = torch.tensor(self.layout.vision_rows), int(prompt.at[-1]) + 1
        if gate := selectors.gate(0, "prune"):
            self._drop(gate, None, None)

    def layer(self, number: int) -> None:
        """Run decoder layer `number`, after a routing gate before it and before a pruning gate after it."""
        every = torch.arange(len(self.at))
        if gate := self.selectors.gate(number, "route"):
            self.taken = self._choose(gate, None, None)[0]
        places = every if self.taken is None else self.taken
        tap, before = Tap(), self.rows[:, places]
        after = run(self.decoder, (number,), before, self._positions(places), tap)
        self.rows = self.rows.index_copy(1, places, after)
        if number < len(self.planes):
            vision = every[torch.isin(self.at, self._vision)]
            added = self.planes[number][:, torch.searchsorted(self._vision, self.at[vision])]
            self.rows = self.rows.index_add(1, vision, added)
        if gate := self.selectors.gate(number + 1, "prune"):
            self._drop(gate, tap, before)

    def _of(self, view: View) -> list[int]:
        """Return the places in `rows` of a view's tokens."""
        return torch.isin(self.at, torch.tensor(view.rows)).nonzero()[:, 0].tolist()

    def _text(self) -> tuple[list[int], list[int]]:
        """Return the places in `rows` of the text before the first view, and of that after the last."""
        end = max(view.end for view in self.layout.views)
        places = self.at.tolist()
        before = [i for i, row in enumerate(places) if row < self.layout.image_start]
        return before, [i for i, row in enumerate(places) if row >= end]

    def _positions(self, places: Tensor) -> Tensor:
        if self.selectors.schedule.positions == "compact":
            first = self.layout.numbered(1)[0][0]
            return torch.arange(first, first + len(places))[None]
        return positions(self.layout, self._length)[..., self.at[places]]

    def _drop(self, gate: Gate, tap: Tap | None, before: Tensor | None) -> None:
        """Drop all tokens but those that the gate chooses; `tap` and `before` are of the layer before it."""
        stay, rows = self._choose(gate, tap, before)
        self.rows, self.at = rows[:, stay], self.at[stay]

    def _choose(self, gate: Gate, tap: Tap | None, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the places that stay [k], and all rows, those of the chosen tokens as the selectors merged them."""
        head, tail = self._text()
        selectors = self.selectors.of(gate, [len(self._of(view)) for view in self.layout.views])
        places, rows = torch.arange(len(self.at)), self.rows.clone()
        stays = ~torch.isin(self.at, self._vision)
        for selector, view in zip(selectors, self.layout.views, strict=True):
            mine = self._of(view)
            seen = torch.tensor([*head, *mine, *tail])
            index = torch.searchsorted(torch.tensor(view.rows), self.at[mine])[None]
            where, mask = self._positions(places)[..., seen], torch.ones(1, len(seen), dtype=torch.int64)
            read = self._read(selector.reads, seen, tap, before)
            slots, kept = selector.kept(GateInputs(self.rows[:, seen], where, mask, index, len(head), read))
            chosen = torch.tensor(mine, dtype=torch.int64)[slots[0]]
            rows[:, chosen] = kept
            stays[chosen] = True
        return stays.nonzero()[:, 0], rows

    def _read(self, names: Sequence[str], seen: Tensor, tap: Tap | None, before: Tensor | None) -> dict[str, Tensor]:
        """Return the tensors that a selector reads; the rows `seen` of those that have rows."""
        if not names:
            return {}
        assert tap is not None and tap.query is not None and before is not None
        query, (key, _) = tap.query[0].transpose(0, 1), next(iter(tap.rows.values()))  # [S, H, dh], [S, 1, Hkv, dh]
        question = self.at >= self.layout.rows
        every = {
            "query": query[-1:],
            "text_query": query[question].mean(0, keepdim=True),
            "queries": query[seen, None],
            "key": key[seen],
            "layer_input": before[:, seen],
        }
        return {name: every[name] for name in names}
