# SPDX-License-Identifier: Apache-2.0
"""Balanced Token Pruning (BTP), arXiv 2505.22038, NeurIPS 2025.

Prunes in three steps inside the decoder. Each keeps tokens that the last prompt row attends to ("local") and tokens
that are far apart in feature space ("global"); the share of the former grows with depth. Calibration finds the layers.

The paper prunes immediately before and immediately after the layers that change the meaning of vision tokens (section
4.3). It gives the statistic and, for LLaVA-1.5, the layers, but no rule that computes these; the rule here is ours.

Preset "released" has the constants of the authors' code: for Qwen-VL families those of their Qwen2.5-VL file, for
others those of their LLaVA-1.5 file, with duplicate tokens merged. Preset "paper" gives every gate disjoint quotas, set
by lambda.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.schedule import Gate, Schedule
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.methods import base
from secateur.selection.balanced import BalancedSelector, Quotas, disjoint_quotas, first_points, part, union_quotas
from secateur.selection.balanced_presets import LLAVA, Published, published
from secateur.selection.budget import BudgetRequest, GatePlan, increasing, plan, spread
from secateur.selection.selector import GateSite, Selector
from secateur.selection.statistics import Statistics

TAU = 0.93  # the paper's, for LLaVA-1.5
Numbers = tuple[float, ...]


@dataclass(frozen=True)
class Method(base.Method):
    """Options of BTP. A list holds one value per gate; for another number of gates it is interpolated."""

    constants = Quotas
    statistics: ClassVar[frozenset[str]] = frozenset({"similarity", "attention"})

    preset: Literal["released", "paper"] = field(
        default="released",
        metadata={"help": "quotas of the code released for the model's family, or the paper's disjoint lambda quotas"},
    )
    tau: float | None = field(
        default=None,
        metadata={
            "help": "a token below this similarity has changed (default 0.93, re-tuned if too few or too many change)"
        },
    )
    epsilon: float = field(default=0.05, metadata={"help": "share of changed tokens that counts as no change"})
    score: Literal["logits", "softmax"] | None = field(
        default=None,
        metadata={"help": "importance: mean over heads of q.k, or of its softmax (default: softmax for Qwen-VL)"},
    )
    attention: Numbers | None = field(
        default=None,
        metadata={
            "help": "preset released: share of kept tokens by attention (default 0.3,0.9,1.0; Qwen-VL 0.12,0.4,1.0)"
        },
    )
    lambdas: Numbers | None = field(
        default=None, metadata={"help": "preset paper: weight of attention at each gate (default: of the family)"}
    )
    over: Numbers | None = field(
        default=None,
        metadata={
            "help": "candidates of the rebalancing, as a multiple of the quota (default 3.7,1.5,1.2; Qwen-VL 1,1,1.2)"
        },
    )
    spatial: Literal["manhattan", "euclidean", "lattice", "off"] | None = field(
        default=None,
        metadata={
            "help": "spatial points at the first gate (default: manhattan if released, off for Qwen-VL or paper)"
        },
    )
    fills: int = field(default=64, metadata={"help": "greedy picks reserved for overlapping sets, where sets overlap"})
    features: Literal["hidden", "key"] = field(
        default="hidden", metadata={"help": "distance on hidden states, or on cached keys (cheaper; a deviation)"}
    )
    query: Literal["last", "text"] = field(
        default="last", metadata={"help": "importance to the last prompt row, or to the mean of the question's rows"}
    )
    final_drop: bool = field(
        default=False, metadata={"help": "remove every vision token at the layer where changes end (LLaVA-1.5 parity)"}
    )

    def __post_init__(self) -> None:
        if self.tau is not None and not 0 < self.tau < 1:
            raise BadSchedule(f"tau {self.tau:g} must be above 0 and below 1")
        if not 0 <= self.epsilon < 1:
            raise BadSchedule(f"epsilon {self.epsilon:g} must be at least 0 and below 1")
        for name, values in (("attention", self.attention), ("lambdas", self.lambdas)):
            if values is not None and (not values or not all(0 <= value <= 1 for value in values)):
                raise BadSchedule(f"{name} {values} must be shares from 0 to 1, one for each gate")
        if self.over is not None and (not self.over or not all(1 <= value < 1e6 for value in self.over)):
            raise BadSchedule(f"over {self.over} must be at least 1 for each gate")
        if self.fills < 0:
            raise BadSchedule(f"fills {self.fills} must be at least 0")
        if self.preset == "paper" and self.attention is not None:
            raise BadSchedule("attention belongs to the preset 'released'; use lambdas with 'paper'")
        if self.preset == "released" and self.lambdas is not None:
            raise BadSchedule("lambdas belong to the preset 'paper'; use attention with 'released'")
        if self.preset == "paper":
            self.refuse(["fills"], "with the preset 'paper', whose sets do not overlap")
        self._check_query(self.score)

    def _check_query(self, score: str | None) -> None:
        if self.query == "text" and score == "softmax":
            raise BadSchedule(
                "query 'text' is the mean of many queries, which is exact for logits only; use --score logits"
            )

    def check(self, statistics: Statistics, request: BudgetRequest) -> None:
        if not self.final_drop:  # else what is measured decides which compressions are within reach
            super().check(statistics, request)

    def calibrate(self, statistics: Statistics, request: BudgetRequest) -> Schedule:
        """Take layers from the stage rule, counts from the request, and quotas from the preset of the family."""
        model, dimensions = statistics.model, statistics.dimensions
        tokens, depth = model.vision_tokens, dimensions.layers
        constants = published(model.family)
        self._check_query(self.score or constants.score)
        if constants.merge == "disjoint":
            self.refuse(["fills"], f"for {constants.source}, whose sets do not overlap")
        scaled = scaled_layers(depth, constants)
        report, found = self._measure(statistics)
        layers = found.layers if found is not None and found.layers else scaled
        drop = self._drop(found, layers, request, depth, constants)
        placed = plan(request, depth, tokens, layers, constants.shares, drop)

        gates = self._gates(placed, tokens, statistics.layout.grid, constants)
        if drop is not None:
            gates = (*gates, Gate(drop, 0))
        source = "request" if request.layers is not None else "calibration" if layers is not scaled else "depth"
        report |= {
            "preset": f"{self.preset}, {constants.source}",
            "layers": list(placed.layers),
            "layers_from": source,
            "layers_scaled": [*scaled, scaled_drop(depth, scaled[-1], constants)],
        }
        return self.schedule(statistics, gates, report | placed.report())

    def _measure(self, statistics: Statistics) -> tuple[Json, Stages | None]:
        """Return the first part of the calibration report, and the stages found, if anything was measured."""
        report: Json = {"samples": statistics.samples, "seed": statistics.seed}
        similarity, attention = statistics.similarity, statistics.attention
        if similarity.size == 0:
            return report | {"note": "nothing was measured"}, None
        tau = TAU if self.tau is None else self.tau
        if self.tau is None and not 0.3 <= max(changed(similarity, tau)[:-1]) <= 0.7:
            tau = tuned_tau(similarity)
        change = changed(similarity, tau)
        found = stages(change, self.epsilon)
        return report | {
            "tau": tau,
            "epsilon": self.epsilon,
            "similarity_below_tau": [round(share, 4) for share in change],
            "attention_to_vision": [round(float(a), 4) for a in attention.mean(1)] if attention.size else [],
            "onset": found.onset,
            "peak": found.peak,
            "layers_calibrated": [*found.layers, found.drop] if found.layers else None,
            "note": found.problem,
        }, found

    def _drop(
        self,
        found: Stages | None,
        layers: Sequence[int],
        request: BudgetRequest,
        depth: int,
        constants: Published,
    ) -> int | None:
        """Return the layer from which no vision token is left, or None without the option."""
        if not self.final_drop:
            return None
        last = (request.layers or layers)[-1]
        drop = found.drop if found is not None and found.drop is not None else scaled_drop(depth, last, constants)
        if drop is None:
            raise BadSchedule(f"no layer is left for a final drop after layer {last} of {depth}; use --no-final-drop")
        return drop

    def _gates(self, placed: GatePlan, tokens: int, grid: tuple[int, int], constants: Published) -> tuple[Gate, ...]:
        """Return the gates with their constants; a gate that keeps all tokens or none has no constants."""
        number, released = len(placed.layers), self.preset == "released"
        over = spread(self.over or constants.over, number)
        shares = (self.attention or constants.attention) if released else (self.lambdas or constants.lambdas)
        weights = spread(shares, number)
        pattern = self.spatial or (constants.spatial if released else "off")
        gates = []
        for i, gate in enumerate(placed.gates()):
            if 0 < gate.keep < tokens:
                points = first_points(pattern, grid, tokens, gate.keep) if i == 0 else ()
                # The released boundary is k, which is half of the tokens until the last gate.
                early = gate.keep if released and 0 < i == number - 1 else (tokens + 1) // 2
                if released and constants.merge == "union":
                    quotas = union_quotas(tokens, gate.keep, weights[i], over[i], self.fills, points, early)
                else:
                    by_attention = part(weights[i], gate.keep) if released else round(weights[i] * gate.keep)
                    quotas = disjoint_quotas(tokens, gate.keep, by_attention, over[i], points, early)
                quotas = replace(
                    quotas,
                    pattern=pattern if quotas.spatial else "off",
                    score=self.score or constants.score,
                    query=self.query,
                    features=self.features,
                )
                gate = replace(gate, selector=asdict(quotas))
            gates.append(gate)
            tokens = gate.keep
        return tuple(gates)

    @classmethod
    def selector(cls, site: GateSite, constants: Quotas) -> Selector:
        return BalancedSelector(constants, site)


@dataclass(frozen=True)
class Stages:
    """Result of the stage rule: the layers to prune on entry, or none and the reason in `problem`.

    `drop` is the layer from which nothing changes any more, if there is one.
    """

    onset: int | None
    peak: int
    layers: tuple[int, ...]
    drop: int | None
    problem: str = ""


def changed(similarity: NDArray[np.float32], tau: float) -> list[float]:
    """Return the share of vision tokens below `tau` in each layer: similarity [L, C, N] -> L values."""
    return [float(share) for share in (similarity < tau).mean((1, 2))]


def tuned_tau(similarity: NDArray[np.float32]) -> float:
    """Return the threshold, in steps of 0.001, at which the most changed layer changes nearest to half of the tokens.

    For LLaVA-1.5 the paper's 0.93 gives 0.56. The last layer does not count, see `stages`.
    """
    ordered = np.sort(similarity[:-1].reshape(len(similarity) - 1, -1), axis=1)
    taus = (np.arange(1, 1000) / 1000).astype(ordered.dtype)
    most = np.stack([np.searchsorted(row, taus, side="left") for row in ordered]).max(0) / ordered.shape[1]
    return (1 + int(np.abs(most - 0.5).argmin())) / 1000


def stages(change: Sequence[float], epsilon: float) -> Stages:
    """Prune early, on entry to the first changing layer, and after the change has passed its first low.

    Args:
        change: share of tokens that each of the L layers changes. The last layer prepares the output rather than
            the meaning, and always changes much: it is left out.
        epsilon: a share up to this counts as no change.
    """
    inner = list(change[:-1])
    peak = int(np.argmax(inner))
    onset = next((i for i, share in enumerate(inner) if share > epsilon), None)
    if onset is None:
        return Stages(None, peak, (), None, f"no layer changes more than {epsilon:g} of the vision tokens")
    first = max(2, min(3, onset - 2))
    second = max(onset, first + 2)
    low = next((i for i in range(peak + 1, len(inner)) if _is_low(inner, i, epsilon)), None)
    if low is None:
        return Stages(onset, peak, (), None, f"the change does not fall to a low after its peak at layer {peak}")
    layers = (first, second, low + 1)
    if not first < second < low + 1 < len(change):
        return Stages(onset, peak, (), None, f"the rule gives layers {layers} of {len(change)}, which do not increase")
    quiet = (i for i in range(low + 2, len(inner)) if max(inner[i:]) <= epsilon)
    return Stages(onset, peak, layers, next(quiet, None))


def _is_low(inner: Sequence[float], i: int, epsilon: float) -> bool:
    """Return whether layer `i` is a local minimum, or its change is at most `epsilon`."""
    rises = i + 1 < len(inner) and inner[i] < inner[i + 1]
    return inner[i] <= inner[i - 1] and (rises or inner[i] <= epsilon)


def scaled_layers(model_layers: int, constants: Published = LLAVA) -> tuple[int, ...]:
    """Return the released layers, scaled by depth and kept distinct, for a model that was not measured."""
    room = max(1, min(len(constants.layers), model_layers - 1))
    return increasing([layer * model_layers / constants.depth for layer in constants.layers[:room]], model_layers)


def scaled_drop(model_layers: int, after: int, constants: Published = LLAVA) -> int | None:
    """Return the released layer of the final drop, scaled by depth, after layer `after`; None if there is no room."""
    layer = max(round(constants.drop * model_layers / constants.depth), after + 1)
    return layer if layer < model_layers else None
