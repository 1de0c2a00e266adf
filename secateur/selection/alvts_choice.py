# SPDX-License-Identifier: Apache-2.0
"""Which candidate a budget of k tokens uses, and how good the selections are: on held-out samples, by overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.bundle.strict_json import Json
from secateur.selection.alvts_alignment import Candidates
from secateur.selection.low_rank import Factors
from secateur.selection.topk import best


class ChosenCandidate(NamedTuple):
    """The selector of one layer.

    number         passes of tuning behind its factors; 0 is the plain singular value decomposition
    overlap, mass  of every candidate, means over the held-out samples; empty without any
    slots          [C, k] its selections on them
    """

    factors: Factors
    number: int
    overlap: list[float]
    mass: list[float]
    slots: NDArray[np.int64]

    def report(self, layer: int) -> Json:
        """Before and after tuning, for schedule.json.

        Overlap and mass are on the samples by which the candidate was chosen: held out from training, but used for
        the choice, so of all that were tried the best counts. On new images they may be lower.
        """
        out: Json = {"layer": layer, "passes": self.number}
        if self.overlap:
            for name, values in (("overlap", self.overlap), ("mass", self.mass)):
                out[f"choice_{name}_before"] = round(values[0], 6)
                out[f"choice_{name}"] = round(values[self.number], 6)
        return out


def choose(candidates: Candidates, keep: int) -> ChosenCandidate:
    """The candidate with the largest overlap at `keep` tokens, the earliest of equals: tuning never makes it worse."""
    slots = [best(score, keep) for score in candidates.scores]
    if not len(candidates.truth):
        return ChosenCandidate(candidates.factors[0], 0, [], [], slots[0].numpy())
    overlap, mass = (
        [measure(each, candidates.truth, keep) for each in slots] for measure in (overlap_at, captured_mass)
    )
    number = int(np.argmax(overlap))
    return ChosenCandidate(candidates.factors[number], number, overlap, mass, slots[number].numpy())


def overlap_at(slots: Tensor, truth: Tensor, keep: int) -> float:
    """Share of the slots [C, k] that the true scores [C, N] would choose too, mean over samples."""
    return float(_members(slots, truth.shape[1]).gather(1, best(truth, keep)).double().mean())


def captured_mass(slots: Tensor, truth: Tensor, keep: int) -> float:
    """True score of the chosen slots over that of the best choice of as many, mean over samples."""
    truth = truth.double()
    return float((truth.gather(1, slots).sum(1) / truth.gather(1, best(truth, keep)).sum(1)).mean())


def mean_jaccard(chosen: Sequence[ChosenCandidate], vision_tokens: int) -> float | None:
    """Mean over pairs of layers and over samples of |A and B| / |A or B|; 1 when every layer chooses alike."""
    pairs, samples = len(chosen) * (len(chosen) - 1) // 2, len(chosen[0].slots)
    if not pairs or not samples:
        return None
    members = torch.stack([_members(torch.from_numpy(c.slots), vision_tokens) for c in chosen], 1).double()  # [C, L, N]
    both = members @ members.mT
    either = 2 * chosen[0].slots.shape[1] - both
    upper = torch.ones(len(chosen), len(chosen)).triu(1).bool()
    return round(float((both / either)[:, upper].mean()), 6)


def _members(slots: Tensor, vision_tokens: int) -> Tensor:
    """[C, k] -> [C, N] bool."""
    return torch.zeros(len(slots), vision_tokens, dtype=torch.bool).scatter(1, slots, True)
