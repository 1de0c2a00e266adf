# SPDX-License-Identifier: Apache-2.0
"""Adaptive Layer-wise Visual Token Selection (ALVTS), arXiv 2606.14277, CVPR 2026.

Before every decoder layer, all vision tokens are scored by a low-rank copy of the layer's query and key projections.
The layer runs on the k best and the text; the other tokens skip it unchanged. The next layer chooses from all tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from secateur.bundle.layout import Dimensions
from secateur.bundle.schedule import Array, Gate, Schedule
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection import low_rank
from secateur.selection.alignment import ChosenCandidate, Options, align, choose, mean_jaccard
from secateur.selection.alignment_state import AlignmentState
from secateur.selection.budget import BudgetRequest, counts, counts_for, reachable
from secateur.selection.low_rank import STEP, Factors, LowRankSelector, Thin, tensor_name
from secateur.selection.selector import GateSite, Selector
from secateur.selection.statistics import Statistics

SHARE = 2 / 9  # the paper's middle setting: 128 of 576 tokens


@dataclass(frozen=True)
class Method(base.Method):
    """Options of ALVTS."""

    constants = Thin
    statistics: ClassVar[frozenset[str]] = frozenset({"layers"})
    samples: ClassVar[int] = 256  # as in the paper, section 3.3

    rank: int | None = field(
        default=None,
        metadata={"help": "rank of the selectors, a multiple of 32 (default: the paper's, or 2 % of a layer's size)"},
    )
    selectors: Literal["calibrated", "svd"] = field(
        default="calibrated",
        metadata={"help": "tuned to the layers' own scores, or the plain singular value decomposition"},
    )
    score: Literal["product", "v2v", "t2v"] = field(
        default="product",
        metadata={
            "help": "attention from vision times attention from text (paper), from vision alone (v2v), or from text "
            "alone (t2v), which does not prefer the top of the image"
        },
    )
    dense_layers: int = field(default=0, metadata={"help": "number of first layers that see every token"})
    group: int = field(default=1, metadata={"help": "consecutive layers that share a selection (above 1: a deviation)"})
    loss: Literal["scaled", "log"] = field(
        default="scaled", metadata={"help": "loss of the tuning: on scores, or on their logarithms (a deviation)"}
    )
    passes: int = field(default=4, metadata={"help": "passes of the tuning over the samples"})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "learning rate of the tuning; falls to a tenth as a cosine"}
    )

    def __post_init__(self) -> None:
        if self.rank is not None and (self.rank < STEP or self.rank % STEP):
            raise BadSchedule(f"rank {self.rank} must be a multiple of {STEP}, at least {STEP}")
        for name, bound in (("dense_layers", 0), ("group", 1), ("passes", 1)):
            if getattr(self, name) < bound:
                raise BadSchedule(f"{name} {getattr(self, name)} must be at least {bound}")
        if not 0 < self.learning_rate < 1:
            raise BadSchedule(f"learning_rate {self.learning_rate:g} must be above 0 and below 1")
        if self.selectors == "svd":
            self.refuse(["loss", "passes", "learning_rate"], "with selectors 'svd'")
        if self.positions == "compact":
            raise BadSchedule("positions 'compact' do not fit alvts, whose rows differ in every layer; use 'original'")

    def check(self, statistics: Statistics, request: BudgetRequest) -> None:
        """Check layers and count only: the selectors need the model."""
        depth = statistics.dimensions.layers
        self._layers(request, depth)
        self._keep(request, depth, statistics.model.vision_tokens)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Place a gate of kind "route" at every layer, all with the same k."""
        dimensions, tokens = statistics.dimensions, statistics.model.vision_tokens
        layers, keep = self._layers(request, dimensions.layers), self._keep(request, dimensions.layers, tokens)
        rank = self.rank or low_rank.default_rank(dimensions)
        options = Options(
            rank=rank,
            score=self.score,
            loss=self.loss,
            passes=self.passes if self.selectors == "calibrated" else 0,
            learning_rate=self.learning_rate,
            bidirectional=dimensions.bidirectional,
        )
        gates = tuple(Gate(layer, keep, "route", {"rank": rank, "score": self.score}) for layer in layers)
        report: Json = {"samples": statistics.samples, "seed": statistics.seed, "selectors": self.selectors}
        if keep in (0, tokens):
            return self.schedule(statistics, gates, report | {"note": "every layer keeps all tokens or none"})
        text, chosen = _choose(statistics, layers, keep, options)
        report |= {"dense_layers": self.dense_layers, "group": self.group, "loss": self.loss}
        report |= _cost(dimensions, gates[0], text, tokens, self.group)
        report |= {
            "mean_jaccard": mean_jaccard(list(chosen.values()), tokens),
            "layers": [each.report(layer) for layer, each in chosen.items()],
        }
        if not statistics.samples:
            report["note"] = "nothing was measured: the selectors are the plain decomposition"
        return self.schedule(statistics, gates, report, _tensors(chosen))

    def _layers(self, request: BudgetRequest, depth: int) -> tuple[int, ...]:
        if request.layers is not None:
            raise BadSchedule("alvts selects before every layer: leave --layers out, or use --dense-layers and --group")
        if self.dense_layers >= depth:
            raise BadSchedule(f"dense_layers {self.dense_layers} leaves no layer of {depth}; at most {depth - 1}")
        return tuple(range(self.dense_layers, depth, self.group))

    def _keep(self, request: BudgetRequest, depth: int, tokens: int) -> int:
        """Return k of every gate: floor(r N) and at least 1 (equation 7), or the k nearest to a compression."""
        request.check()
        if request.compression is not None:
            bound = reachable(self.dense_layers, depth, tokens)
            if request.compression > bound:
                raise BadSchedule(
                    f"compression {request.compression:g} is out of reach with {self.dense_layers} dense layers of "
                    f"{depth} (at most {math.floor(100 * bound) / 100:.2f}); lower --dense-layers or --compression"
                )
            return counts_for(request.compression, (self.dense_layers,), (1.0,), depth, tokens)[0]
        share = request.keep or (SHARE,)
        if len(share) != 1:
            raise BadSchedule(
                f"alvts keeps the same count in every layer, but --keep has {len(share)} values; give one"
            )
        (nearest,) = counts(share, tokens)
        return max(1, math.floor(share[0] * tokens + 1e-9)) if 0 < share[0] <= 1 else nearest

    @classmethod
    def selector(cls, site: GateSite, constants: Thin) -> Selector:
        return LowRankSelector(site, constants)


def _choose(
    statistics: Statistics, layers: tuple[int, ...], keep: int, options: Options
) -> tuple[int, dict[int, ChosenCandidate]]:
    """Return the mean text rows of a prompt, and the selector of each layer, read from an earlier run or tuned now."""
    if statistics.layers is None:
        raise BadSchedule("alvts needs the model's layers, which were not measured; calibrate with samples")
    walk = iter(statistics.layers())
    rows = next(walk)
    lengths = [each.shape[1] for each in rows.rows]
    text = (
        round(sum(lengths) / len(lengths)) - statistics.layout.vision_tokens
        if lengths
        else statistics.layout.image_start
    )
    state = AlignmentState.of(statistics, rows, options)
    chosen = {layer: choose(found, keep) for layer in layers if (found := state.read(layer)) is not None}
    statistics.progress("align", len(chosen), len(layers))
    for layer in [layer for layer in layers if layer not in chosen]:
        while rows.number < layer:
            rows = next(walk)
        found = align(rows, statistics.layout, options, statistics.seed)
        state.write(layer, found)
        chosen[layer] = choose(found, keep)
        statistics.progress("align", len(chosen), len(layers))
    return text, {layer: chosen[layer] for layer in layers}


def _tensors(chosen: Mapping[int, ChosenCandidate]) -> dict[str, Array]:
    return {
        tensor_name(layer, part): getattr(each.factors, part).numpy()
        for layer, each in chosen.items()
        for part in Factors._fields
    }


def _cost(dimensions: Dimensions, gate: Gate, text: int, tokens: int, group: int) -> Json:
    """Report the parameters and FLOPs of a selector relative to its layers; two operations per multiplication."""
    rank, asking = gate.selector["rank"], text if gate.selector["score"] == "t2v" else None
    weights = low_rank.parameters(dimensions, rank)
    selector = low_rank.selector_macs(dimensions, rank, text + tokens, asking)
    dense, pruned = (group * low_rank.layer_macs(dimensions, text + count) for count in (tokens, gate.keep))
    return {
        "rank": rank,
        "selector_parameters": weights,
        "selector_share_of_layer": round(weights / low_rank.layer_parameters(dimensions), 6),
        "text_rows": text,
        "selector_flops": 2 * selector,
        "selector_share_of_dense_flops": round(selector / dense, 6),
        "selector_share_of_pruned_flops": round(selector / pruned, 6),
        "pruned_and_selector_of_dense_flops": round((pruned + selector) / dense, 6),
    }
