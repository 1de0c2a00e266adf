# SPDX-License-Identifier: Apache-2.0
"""Tune the thin projections of a layer to reproduce its own scores (ALVTS, arXiv 2606.14277, section 3.3).

The loss is equation 11 on scores divided by the mean true score of their sample: with the raw scores, about 1e-6,
Adam's epsilon would dominate the gradients. Every pass gives one candidate. `choose` returns the best one for a budget
of k tokens, by the overlap of its selection with the true one on held-out samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from secateur.bundle.layout import Layout
from secateur.bundle.strict_json import Json
from secateur.errors import BadSchedule
from secateur.selection.low_rank import Factors, importance, queries_and_keys, svd
from secateur.selection.statistics import LayerRows
from secateur.selection.topk import best

BATCH = 8
HELD_OUT = 4  # one sample in four is held out to choose the candidate, the others are trained on
FLOOR = 0.1  # last learning rate as a share of the first


@dataclass(frozen=True)
class Options:
    """Settings of the tuning; with 0 passes the selectors stay the plain singular value decomposition."""

    rank: int
    score: str
    loss: str
    passes: int
    learning_rate: float
    bidirectional: bool = False


class Candidates(NamedTuple):
    """The factors of one layer before tuning and after each of P passes, and their scores on C held-out samples.

    factors  P + 1 candidates
    scores   [P + 1, C, N]  scores of each candidate
    truth    [C, N]         scores of the layer's own projections
    """

    factors: list[Factors]
    scores: Tensor
    truth: Tensor


class Batch(NamedTuple):
    """Samples of one layer, padded on the right: rows [B, S, D] fp32, attention_mask [B, S], position_ids likewise.

    With M-RoPE position_ids are [3, B, S].
    """

    rows: Tensor
    position_ids: Tensor
    attention_mask: Tensor


def align(layer: LayerRows, layout: Layout, options: Options, seed: int) -> Candidates:
    """Tune the selector of one layer. The same seed and thread count give the same bits.

    Raises:
        BadSchedule: a sample has no text after the image, so the product of both scores is zero.
    """
    _check_text(layer.rows, layout, options.score)
    every = range(len(layer.rows))
    training, held_out = split(len(every), seed)
    with torch.inference_mode(False), torch.no_grad():
        kept, truth = [svd(layer.projections, options.rank)], _scores(layer, layout, options, None, every)
        if options.passes and training:
            random = np.random.RandomState([seed, layer.number])
            kept += _passes(layer, layout, options, kept[0], truth, training, random)
        scores = [_scores(layer, layout, options, factors, held_out) for factors in kept]
        return Candidates(kept, torch.stack(scores), truth[held_out])


def split(samples: int, seed: int) -> tuple[list[int], list[int]]:
    """Return the samples to train on and the held-out samples; a single sample is used for both."""
    order = [int(i) for i in np.random.RandomState([seed]).permutation(samples)]
    held_out = max(1, samples // HELD_OUT)
    return order[held_out:] or order, sorted(order[:held_out])


def batches(order: Sequence[int]) -> list[list[int]]:
    """Split `order` into batches of at most BATCH samples."""
    return [list(order[i : i + BATCH]) for i in range(0, len(order), BATCH)]


def _passes(
    layer: LayerRows,
    layout: Layout,
    options: Options,
    start: Factors,
    truth: Tensor,
    training: Sequence[int],
    random: np.random.RandomState,
) -> list[Factors]:
    """Return the factors after each pass of Adam with a cosine schedule."""
    tuned = Factors(*(factor.clone().requires_grad_() for factor in start))
    optimizer = torch.optim.Adam(tuned, lr=options.learning_rate)
    steps = options.passes * len(batches(training))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, options.learning_rate * FLOOR)
    kept = []
    for _ in range(options.passes):
        for part in batches([training[i] for i in random.permutation(len(training))]):
            with torch.enable_grad():
                score = _score(layer, layout, options, tuned, part)
                error = loss(score, truth[part], options.loss)
            optimizer.zero_grad()
            torch.autograd.backward(error)
            optimizer.step()
            schedule.step()
        kept.append(Factors(*(factor.detach().clone() for factor in tuned)))
    return kept


def loss(score: Tensor, truth: Tensor, kind: str) -> Tensor:
    """Return the squared error of scores [B, N], each over its sample's mean true score, or of logarithms ("log")."""
    if kind == "log":
        tiny = torch.finfo(torch.float32).tiny
        return (score.clamp_min(tiny).log() - truth.clamp_min(tiny).log()).square().mean()
    return ((score - truth) / truth.mean(dim=-1, keepdim=True)).square().mean()


def pad(samples: Sequence[Tensor], layout: Layout) -> Batch:
    """Join rows [1, S, D] of several lengths into one batch."""
    longest = max(sample.shape[1] for sample in samples)
    rows = torch.zeros(len(samples), longest, samples[0].shape[2])
    mask = torch.zeros(len(samples), longest, dtype=torch.int64)
    for i, sample in enumerate(samples):
        rows[i, : sample.shape[1]] = sample[0]
        mask[i, : sample.shape[1]] = 1
    positions = torch.tensor(layout.numbered(longest))[:, None].expand(-1, len(samples), -1)
    return Batch(rows, positions if len(positions) > 1 else positions[0], mask)


def _score(
    layer: LayerRows, layout: Layout, options: Options, factors: Factors | None, samples: Sequence[int]
) -> Tensor:
    """Return the scores [C, N] of one batch of samples by `factors`, or by the layer's own projections if None."""
    batch = pad([layer.rows[i] for i in samples], layout)
    query, key = queries_and_keys(factors, layer.projections, batch.rows, batch.position_ids)
    start, tokens = layout.image_start, layout.vision_tokens
    return importance(query, key, batch.attention_mask, start, tokens, options.score, options.bidirectional)


def _scores(
    layer: LayerRows, layout: Layout, options: Options, factors: Factors | None, samples: Sequence[int]
) -> Tensor:
    """Return the scores of any number of samples, see `_score`."""
    parts = [_score(layer, layout, options, factors, part) for part in batches(samples)]
    return torch.cat(parts) if parts else torch.zeros(0, layout.vision_tokens)


def _check_text(samples: Sequence[Tensor], layout: Layout, score: str) -> None:
    end = layout.image_start + layout.vision_tokens
    for i, rows in enumerate(samples):
        if score != "v2v" and rows.shape[1] <= end:
            raise BadSchedule(
                f"sample {i} has {rows.shape[1]} rows and the image ends at row {end}, so there is no text after the "
                "image to attend to it; use --score v2v"
            )


class ChosenCandidate(NamedTuple):
    """The chosen selector of one layer.

    number         tuning passes of its factors; 0 is the plain singular value decomposition
    overlap, mass  of every candidate, means over the held-out samples; empty without samples
    slots          [C, k] its selections on the held-out samples
    """

    factors: Factors
    number: int
    overlap: list[float]
    mass: list[float]
    slots: NDArray[np.int64]

    def report(self, layer: int) -> Json:
        """Return overlap and mass before and after tuning, for schedule.json.

        They are measured on the held-out samples, which also chose the candidate: on new images they may be lower.
        """
        out: Json = {"layer": layer, "passes": self.number}
        if self.overlap:
            for name, values in (("overlap", self.overlap), ("mass", self.mass)):
                out[f"choice_{name}_before"] = round(values[0], 6)
                out[f"choice_{name}"] = round(values[self.number], 6)
        return out


def choose(candidates: Candidates, keep: int) -> ChosenCandidate:
    """Return the candidate with the largest overlap at `keep` tokens, the earliest if several are equal."""
    slots = [best(score, keep) for score in candidates.scores]
    if not len(candidates.truth):
        return ChosenCandidate(candidates.factors[0], 0, [], [], slots[0].numpy())
    overlap, mass = (
        [measure(each, candidates.truth, keep) for each in slots] for measure in (overlap_at, captured_mass)
    )
    number = int(np.argmax(overlap))
    return ChosenCandidate(candidates.factors[number], number, overlap, mass, slots[number].numpy())


def overlap_at(slots: Tensor, truth: Tensor, keep: int) -> float:
    """Return the share of the slots [C, k] that the true scores [C, N] choose too, mean over samples."""
    return float(_members(slots, truth.shape[1]).gather(1, best(truth, keep)).double().mean())


def captured_mass(slots: Tensor, truth: Tensor, keep: int) -> float:
    """Return the true score of the slots over that of the best slots of the same number, mean over samples."""
    truth = truth.double()
    return float((truth.gather(1, slots).sum(1) / truth.gather(1, best(truth, keep)).sum(1)).mean())


def mean_jaccard(chosen: Sequence[ChosenCandidate], vision_tokens: int) -> float | None:
    """Return |A and B| / |A or B| of two layers' slots, mean over pairs of layers and samples; 1 if all are equal."""
    pairs, samples = len(chosen) * (len(chosen) - 1) // 2, len(chosen[0].slots)
    if not pairs or not samples:
        return None
    members = torch.stack([_members(torch.from_numpy(c.slots), vision_tokens) for c in chosen], 1).double()  # [C, L, N]
    both = members @ members.mT
    either = 2 * chosen[0].slots.shape[1] - both
    upper = torch.ones(len(chosen), len(chosen)).triu(1).bool()
    return round(float((both / either)[:, upper].mean()), 6)


def _members(slots: Tensor, vision_tokens: int) -> Tensor:
    """Return a mask [C, N] of the slots [C, k]."""
    return torch.zeros(len(slots), vision_tokens, dtype=torch.bool).scatter(1, slots, True)
