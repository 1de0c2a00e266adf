# SPDX-License-Identifier: Apache-2.0
"""DART (Duplication-Aware Reduction of Tokens), arXiv 2502.11494, EMNLP 2025.

A few pivots are chosen: the image tokens and text tokens with the largest L1 norm of their keys. Then each pivot in
turn picks the image tokens least similar to it by cosine similarity. The image pivots and the picks are kept, from
layer 2 of 32 on, scaled by depth. No attention is needed.

Before the decoder there are no keys: `--layers 0 --norms hidden --features hidden` takes both from the embeddings.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import torch
from torch import Tensor

from secateur.bundle.schedule import Schedule
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import one_of
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Statistics
from secateur.selection.topk import ascending, gather, top

LAYER = 2  # of 32
SHARE = 0.222  # 128 of 576
FEATURES = ("key", "hidden")


@dataclass(frozen=True)
class Pivots:
    """Constants of one gate.

    image_pivots, text_pivots  their numbers; a gate that keeps fewer than image_pivots keeps the first of them
    text                       text pivots come from the rows after the image ("question") or from "all" text rows
    norms                      pivots have the largest L1 norm of their "key" or of their "hidden" state
    features                   cosine similarity of "key" or "hidden" states
    """

    image_pivots: int = 4
    text_pivots: int = 4
    text: str = "question"
    norms: str = "key"
    features: str = "hidden"

    def __post_init__(self) -> None:
        for name in ("image_pivots", "text_pivots"):
            if getattr(self, name) < 0:
                raise BadSchedule(f"{name} {getattr(self, name)} must be at least 0")
        if self.image_pivots + self.text_pivots == 0:
            raise BadSchedule("image_pivots and text_pivots are both 0; give at least one pivot")
        one_of("text", self.text, ("question", "all"))
        one_of("norms", self.norms, FEATURES)
        one_of("features", self.features, FEATURES)

    @property
    def keyed(self) -> bool:
        """Whether a gate reads keys, which do not exist before the decoder."""
        return "key" in (self.norms, self.features)


@dataclass(frozen=True)
class Method(base.Method):
    """Options of DART."""

    constants = Pivots

    image_pivots: int = field(default=4, metadata={"help": "pivots among the vision tokens; all of them are kept"})
    text_pivots: int = field(default=4, metadata={"help": "pivots among the text tokens"})
    text: Literal["question", "all"] = field(
        default="question", metadata={"help": "text pivots from the rows after the image, or from all text rows"}
    )
    norms: Literal["key", "hidden"] = field(
        default="key", metadata={"help": "pivots by the L1 norm of keys, or of hidden states"}
    )
    features: Literal["key", "hidden"] = field(
        default="hidden", metadata={"help": "cosine similarity of hidden states, or of keys"}
    )

    def __post_init__(self) -> None:
        self._pivots()

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place one gate unless the request names more."""
        depth, tokens, pivots = statistics.dimensions.layers, statistics.model.vision_tokens, self._pivots()
        if request.layers and request.layers[0] == 0:
            _check_layer(0, pivots)
        placed = plan(request, depth, tokens, (LAYER * depth / 32,), (SHARE,), earliest=1 if pivots.keyed else 0)
        return self.schedule(statistics, placed.gates(asdict(pivots)), placed.report())

    def _pivots(self) -> Pivots:
        return Pivots(self.image_pivots, self.text_pivots, self.text, self.norms, self.features)

    @classmethod
    def selector(cls, site: GateSite, constants: Pivots) -> Selector:
        _check_layer(site.gate.layer, constants)
        return LeastAlike(constants, site)


def _check_layer(layer: int, pivots: Pivots) -> None:
    if layer == 0 and pivots.keyed:
        raise BadSchedule("a dart gate at layer 0 has no keys to read; use --norms hidden --features hidden")


def shares(count: int, pivots: int) -> tuple[int, ...]:
    """Divide `count` picks among the pivots: each takes its part of the remainder, rounded up."""
    out: list[int] = []
    for i in range(pivots):
        out.append(-((sum(out) - count) // (pivots - i)))
    return tuple(out)


class LeastAlike(Selector):
    """Keeps image pivots and the tokens least similar to each pivot; image pivots pick first, larger norms first."""

    slots: Tensor

    def __init__(self, pivots: Pivots, site: GateSite) -> None:
        super().__init__()
        self.pivots = pivots
        self.reads = ("key",) if pivots.keyed else ()
        self.start, self.end = site.image_start, site.image_start + site.vision_tokens
        self.image = min(pivots.image_pivots, site.gate.keep)
        # A top-k must not take more rows than the shortest possible prompt has.
        self.text = min(pivots.text_pivots, self.end)
        self.shares = shares(site.gate.keep - self.image, self.image + self.text)
        self.register_buffer("slots", torch.arange(site.vision_tokens))

    def forward(self, rows: GateInputs) -> Tensor:
        norm = self._rows(rows, self.pivots.norms).float().abs().sum(-1)
        chosen = [top(norm[:, self.start : self.end], self.image)] if self.image else []
        if any(self.shares):
            chosen += self._picked(rows, norm, chosen)
        return ascending(torch.cat(chosen, 1))

    def _picked(self, rows: GateInputs, norm: Tensor, image: list[Tensor]) -> list[Tensor]:
        """Return the slots [B, share] that each pivot picks."""
        features = self._rows(rows, self.pivots.features)
        vision = features[:, self.start : self.end].float()
        pivots = [slots + self.start for slots in image]
        if self.text:
            pivots.append(self._text(norm, rows.attention_mask))
        likeness = gather(features, torch.cat(pivots, 1)).float() @ vision.transpose(1, 2)
        # The norm of a pivot does not change the order of its candidates, so it is not divided out.
        likeness = likeness / torch.linalg.vector_norm(vision, dim=-1).clamp_min(1e-12).unsqueeze(1)
        taken = torch.zeros_like(norm[:, self.start : self.end])
        for slots in image:
            taken = taken + self._marks(slots)
        picks: list[Tensor] = []
        for i, share in enumerate(self.shares):
            if share:
                free = torch.where(taken > 0, torch.finfo(torch.float32).min, -likeness[:, i])
                picks.append(top(free, share))
                taken = taken + self._marks(picks[-1])
        return picks

    def _rows(self, rows: GateInputs, features: str) -> Tensor:
        """Return all rows [B, S, C]: hidden states, or keys with their heads concatenated."""
        if features == "hidden":
            return rows.hidden_states
        return rows.read["key"].flatten(2).transpose(0, 1)

    def _text(self, norm: Tensor, mask: Tensor) -> Tensor:
        """Return the rows [B, text] of the text pivots. With too few text rows, the first pivot is repeated.

        A norm is at least 0: rows that may not be pivots get -1.
        """
        before = self.start if self.pivots.text == "all" else 0
        hidden = torch.full_like(norm[:, before : self.end], -1.0)
        norm = torch.where(mask > 0, torch.cat([norm[:, :before], hidden, norm[:, self.end :]], 1), -1.0)
        text = top(norm, self.text)
        return torch.where(norm.gather(1, text) < 0, text[:, :1], text)

    def _marks(self, slots: Tensor) -> Tensor:
        """Return 1 at the given slots [B, n], 0 elsewhere: [B, N]."""
        return (slots.unsqueeze(2) == self.slots).float().sum(1)
