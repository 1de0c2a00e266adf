# SPDX-License-Identifier: Apache-2.0
"""FitPrune, arXiv 2409.10197, AAAI 2025: keeps the fewest tokens that preserve almost all of a layer's attention.

Offline, a binary search over alpha, the share of attention that any layer may lose, gives a count for each layer. At
run time the tokens with the largest product of two sums stay: attention received from the text, and from the image.

The paper prunes in up to 26 layers, between a layer's attention and its output projection. Here the layer's gate is
placed at the entry of the next layer, and the counts are merged into a few cuts, as each cut splits a graph.

A staircase is the number of tokens that enter each of L layers. It never rises, and starts with all N: a layer's
attention decides what the next layer sees.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import accumulate
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.bundle.schedule import Gate, Schedule, check_gates
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.attention import attention_map, visible
from secateur.selection.budget import BudgetRequest, plan
from secateur.selection.constants import NoConstants
from secateur.selection.selector import GateInputs, GateSite, Selector
from secateur.selection.statistics import Floats, Statistics
from secateur.selection.topk import best

COMPRESSION = 0.6  # the published table for 60 % fewer FLOPs leaves 231 of 576 tokens on average


@dataclass(frozen=True)
class Method(base.Method):
    """Options of FitPrune."""

    statistics: ClassVar[frozenset[str]] = frozenset({"cross_attention", "self_attention"})

    gates: int = field(
        default=3, metadata={"help": "largest number of cuts that the counts of all layers are merged into"}
    )
    table: tuple[int, ...] | None = field(
        default=None,
        metadata={"help": "tokens that each layer deletes, one value a layer, instead of the search: 14,33,89,36,..."},
    )

    def __post_init__(self) -> None:
        if self.gates < 1:
            raise BadSchedule(f"gates {self.gates} must be at least 1")
        if self.table is not None and min(self.table, default=0) < 0:
            raise BadSchedule(f"table deletes {min(self.table)} tokens in a layer; each value must be at least 0")

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Find a count for each layer, merge them into cuts, and scale these to the budget."""
        if request.layers is not None or request.keep is not None:
            self.refuse(["gates"], "when --layers or --keep sets the cuts")
        model, depth = statistics.model, statistics.dimensions.layers
        tokens = model.vision_tokens
        steps, report = self._steps(statistics, COMPRESSION if request.compression is None else request.compression)
        average = sum(steps) / depth
        cuts = request.layers or merge(steps, len(request.keep) if request.keep else self.gates)
        check_gates(tuple(Gate(layer, tokens) for layer in cuts), depth, tokens)
        merged = levels(steps, cuts)
        if request.keep is None and request.compression is None:
            # A table sets its own budget.
            request = replace(request, compression=COMPRESSION if self.table is None else 1 - average / tokens)
        placed = plan(request, depth, tokens, cuts, [level / tokens for level in merged], earliest=1)
        ends = [*cuts[1:], depth]
        followed = sum(level * (end - cut) for level, cut, end in zip(merged, cuts, ends, strict=True))
        report |= {
            "staircase": list(steps),
            "average_staircase": round(average, 3),
            "cuts": list(cuts),
            "levels": [round(level, 3) for level in merged],
            "average_merged": round((cuts[0] * tokens + followed) / depth, 3),
        }
        return self.schedule(statistics, placed.gates(), report | placed.report())

    def _steps(self, statistics: Statistics, compression: float) -> tuple[tuple[int, ...], Json]:
        """Return the number of tokens that enter each layer, and a report of its source."""
        depth, tokens = statistics.dimensions.layers, statistics.model.vision_tokens
        report: Json = {"samples": statistics.samples, "seed": statistics.seed}
        if self.table is not None:
            if len(self.table) != depth:
                raise BadSchedule(f"table has {len(self.table)} values for {depth} layers; give one for each")
            if sum(self.table) > tokens:
                raise BadSchedule(f"table deletes {sum(self.table)} of {tokens} tokens; it is of another model")
            return from_table(self.table, tokens), report | {"counts_from": "table"}
        if statistics.cross_attention.size == 0:
            steps = tuple(max(round(tokens * (depth - layer) / depth), 1) for layer in range(depth))
            note = "nothing was measured: the tokens fall evenly with depth"
            return steps, report | {"counts_from": "depth", "note": note}
        losses = lost(statistics.cross_attention, statistics.self_attention)
        alpha, steps = search(losses, (1 - compression) * tokens)
        return steps, report | {"counts_from": "search", "alpha": round(alpha, 6)}

    @classmethod
    def selector(cls, site: GateSite, constants: NoConstants) -> Selector:
        if site.gate.layer < 1:
            raise BadSchedule(
                "a fitprune gate at layer 0 has no layer before it to read; it must be at layer 1 or later"
            )
        return ProductSelector(site)


class ProductSelector(Selector):
    """Keeps the largest (attention received from the text) x (attention received from the image).

    Each row counts its largest head, in the layer before the gate, over all rows that it sees.
    """

    reads = ("queries", "key")

    def __init__(self, site: GateSite) -> None:
        super().__init__()
        self.keep, self.start, self.tokens = site.gate.keep, site.image_start, site.vision_tokens
        self.bidirectional = site.dimensions.bidirectional

    def forward(self, rows: GateInputs) -> Tensor:
        return best(self.score(rows), self.keep)

    def score(self, rows: GateInputs) -> Tensor:
        """Return the score [B, N] fp32. Text means the valid rows after the image; those before it do not see it."""
        mask = rows.attention_mask
        every = torch.arange(mask.shape[1], device=mask.device)
        seen = attention_map(
            rows.read["queries"].permute(1, 2, 0, 3),
            rows.read["key"].permute(1, 2, 3, 0),
            visible(every, mask, self.bidirectional),
        ).amax((1, 2))
        end = self.start + self.tokens
        seen = seen[:, :, self.start : end]
        text = (mask[:, end:] > 0).to(seen.dtype).unsqueeze(2)
        return (seen[:, end:] * text).sum(1) * seen[:, self.start : end].sum(1)


def lost(cross: Floats, own: Floats) -> NDArray[np.float64]:
    """Return the share of attention mass lost by keeping the best 1 .. N tokens: [L, C, N] twice -> [L, N].

    Tokens are ranked in each sample by cross x self, ties to the lower index. The share of each mass is the mean over
    samples; the larger of the two losses counts.
    """
    order = np.argsort(-(cross.astype(np.float64) * own), axis=-1, kind="stable")
    kept = [_kept_share(np.take_along_axis(mass, order, axis=-1)).mean(1) for mass in (cross, own)]
    out: NDArray[np.float64] = np.maximum(1 - np.minimum(*kept), 0)
    out[:, -1] = 0  # keeping all tokens loses nothing, whatever the rounding
    return out


def _kept_share(ranked: Floats) -> NDArray[np.float64]:
    summed = ranked.astype(np.float64).cumsum(-1)
    whole = summed[..., -1:]
    out: NDArray[np.float64] = np.divide(summed, whole, out=np.ones_like(summed), where=whole > 0)
    return out


def staircase(losses: NDArray[np.float64], alpha: float) -> tuple[int, ...]:
    """Give each layer the fewest tokens that lose at most `alpha`, and never more than the layer before it."""
    layers, tokens = losses.shape
    needed = [1 + int((losses[layer] > alpha).sum()) for layer in range(layers - 1)]
    return tuple(accumulate([tokens, *needed], min))


def search(losses: NDArray[np.float64], average: float) -> tuple[float, tuple[int, ...]]:
    """Return the alpha whose staircase is nearest to `average` tokens per layer, and that staircase.

    The average falls as alpha grows, and only at the values in `losses`: a binary search over these is exact.
    """
    alphas = np.unique(losses).tolist()

    def below(alpha: float) -> bool:
        return sum(staircase(losses, alpha)) <= average * len(losses)

    first = min(bisect_left(alphas, True, key=below), len(alphas) - 1)
    near = alphas[max(first - 1, 0) : first + 1]
    alpha = min(near, key=lambda value: abs(sum(staircase(losses, value)) - average * len(losses)))
    return alpha, staircase(losses, alpha)


def from_table(deletions: Sequence[int], tokens: int) -> tuple[int, ...]:
    """Return the staircase of a published table of the tokens deleted by each layer; at least one token is left.

    The value of the last layer has no effect, as no layer follows.
    """
    return tuple(max(tokens - gone, 1) for gone in accumulate([0, *deletions[:-1]]))


def merge(steps: Sequence[int], cuts: int) -> tuple[int, ...]:
    """Return the layers of at most `cuts` cuts that fit the staircase best: least squared deviation of the levels.

    Before the first cut all tokens are alive; after a cut the level is the mean up to the next cut. Exact, by dynamic
    programming over the end of a prefix; of equal choices, fewer cuts, then earlier ones. At least one cut, at layer 1.
    """
    depth = len(steps)
    sums = list(accumulate(steps, initial=0))
    squares = list(accumulate((step * step for step in steps), initial=0))

    def deviation(start: int, end: int) -> Fraction:
        return squares[end] - squares[start] - Fraction((sums[end] - sums[start]) ** 2, end - start)

    # For the layers before each `end`: deviation, number of cuts, cuts.
    best: list[tuple[Fraction, int, tuple[int, ...]]] = [
        (Fraction(sum((steps[0] - step) ** 2 for step in steps[:end])), 0, ()) for end in range(depth + 1)
    ]
    for _ in range(cuts):
        one_more = [
            [(best[cut][0] + deviation(cut, end), best[cut][1] + 1, (*best[cut][2], cut)) for cut in range(1, end)]
            for end in range(depth + 1)
        ]
        best = [min([before, *later]) for before, later in zip(best, one_more, strict=True)]
    return best[depth][2] or (1,)


def levels(steps: Sequence[int], cuts: Sequence[int]) -> tuple[float, ...]:
    """Return the mean of the staircase from each cut to the next."""
    ends = [*cuts[1:], len(steps)]
    return tuple(sum(steps[cut:end]) / (end - cut) for cut, end in zip(cuts, ends, strict=True))
