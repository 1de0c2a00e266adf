# SPDX-License-Identifier: Apache-2.0
"""Choice of the next token: greedy, or by temperature and top-p with a seed."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from secateur.errors import InputError, SecateurError, UnknownName


@dataclass(frozen=True)
class Sampling:
    """Options for generating one answer.

    max_new_tokens  maximum number of generated tokens, at least 1
    temperature     0: the most likely token; above 0: divides the logits before a random draw
    top_p           the draw is among the most likely tokens whose probabilities add up to this, in (0, 1]
    seed            of the random draw; every sample of a batch has its own generator with this seed

    Raises:
        InputError: an option is out of bounds.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not _whole(self.max_new_tokens) or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens must be an integer of at least 1, got {self.max_new_tokens!r}")
        if not _real(self.temperature) or self.temperature < 0:
            raise InputError(f"temperature must be a number of at least 0 (0 is greedy), got {self.temperature!r}")
        if not _real(self.top_p) or not 0 < self.top_p <= 1:
            raise InputError(f"top_p must be above 0 and at most 1, got {self.top_p!r}")
        if not _whole(self.seed) or self.seed < 0:
            raise InputError(f"seed must be an integer of at least 0, got {self.seed!r}")


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int


def merge(sampling: Sampling | None, options: SamplingOptions) -> Sampling:
    """Return `sampling` (default: `Sampling()`) with the given options replaced.

    Raises:
        UnknownName: no such option.
        InputError: an option is out of bounds.
    """
    known = [field.name for field in fields(Sampling)]
    for name in options:
        if name not in known:
            raise UnknownName("option", name, known)
    return replace(sampling or Sampling(), **options)


def _whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return _whole(value) or (isinstance(value, float | np.floating) and math.isfinite(value))


class Sampler:
    """Draws the tokens of one sample."""

    def __init__(self, options: Sampling) -> None:
        self._options = options
        self._random = np.random.default_rng(options.seed)

    def pick(self, logits: NDArray[Any]) -> int:
        """Choose the next token from logits [V]; ties go to the lowest index.

        Raises:
            SecateurError: the logits contain NaN.
        """
        if np.isnan(logits).any():
            raise SecateurError("the decoder returned NaN; its values may overflow in this dtype: export with fp32")
        if self._options.temperature == 0:
            return int(np.argmax(logits))
        probability = self.probabilities(logits)
        return int(self._random.choice(len(probability), p=probability))

    def probabilities(self, logits: NDArray[Any]) -> NDArray[np.float64]:
        """Return the probabilities [V] after temperature and top-p; their sum is 1."""
        # The maximum is subtracted first, so that a division by a tiny temperature cannot overflow.
        scaled = (logits.astype(np.float64) - np.max(logits)) / self._options.temperature
        weight = np.exp(scaled)
        probability: NDArray[np.float64] = weight / weight.sum()
        if self._options.top_p < 1:
            order = np.argsort(-probability, kind="stable")
            before = np.cumsum(probability[order]) - probability[order]
            probability[order[before >= self._options.top_p]] = 0
            probability /= probability.sum()
        return probability
