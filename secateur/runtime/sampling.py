# SPDX-License-Identifier: Apache-2.0
"""Choice of the next token by the rules of transformers' `generate`, in its order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.sampling import Sampling
from secateur.errors import SecateurError, UnknownName

Scores = NDArray[np.float64]


RULES = frozenset({
    "repetition_penalty", "no_repeat_ngram_size", "min_new_tokens", "min_length", "suppress_tokens",
    "begin_suppress_tokens", "bad_words_ids",
})  # fmt: skip
"""Settings that change or forbid logits; the others choose among them, or end an answer."""


class SamplingOptions(TypedDict, total=False):
    """The fields of `Sampling` as keyword arguments."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    top_k: int
    min_p: float
    typical_p: float
    epsilon_cutoff: float
    repetition_penalty: float
    no_repeat_ngram_size: int
    min_new_tokens: int
    min_length: int
    stop_strings: tuple[str, ...]
    suppress_tokens: tuple[int, ...]
    begin_suppress_tokens: tuple[int, ...]
    bad_words_ids: tuple[tuple[int, ...], ...]


def merge(sampling: Sampling, options: SamplingOptions) -> Sampling:
    """Return `sampling` with the given options replaced.

    Raises:
        UnknownName: no such option.
        InputError: an option is out of bounds.
    """
    known = [field.name for field in fields(Sampling)]
    for name in options:
        if name not in known:
            raise UnknownName("option", name, known)
    return replace(sampling, **options)


class Sampler:
    """Chooses the tokens of one sample.

    options  settings of the answer
    stop     token ids that end an answer
    prompt   ids of all rows before the answer, as transformers counts them; ids below 0 are unknown
    """

    def __init__(self, options: Sampling, stop: Collection[int] = (), prompt: Sequence[int] = ()) -> None:
        self._options, self._stop, self._prompt = options, tuple(stop), len(prompt)
        self._ids = list(prompt)
        self._seen = np.unique(np.array(prompt, dtype=np.int64))
        self._is_plain = not RULES.intersection(options.changed())
        self._random = np.random.default_rng(options.seed)

    def pick(self, logits: NDArray[Any]) -> int:
        """Choose the next token from logits [V]; ties go to the lowest index.

        Raises:
            SecateurError: the logits contain NaN, or the settings forbid every token.
        """
        if np.isnan(logits).any():
            raise SecateurError("the decoder returned NaN; its values may overflow in this dtype: export with fp32")
        scores = logits if self._is_plain else self.scores(logits)
        if not self._is_plain and np.max(scores) == -np.inf:
            changed = self._options.changed()
            raise SecateurError(f"the settings forbid all {len(scores)} tokens; change one of {changed}")
        if self._options.temperature == 0:
            token = int(np.argmax(scores))
        else:
            probability = self.probabilities(scores)
            token = int(self._random.choice(len(probability), p=probability))
        self.add(token)
        return token

    def add(self, token: int) -> None:
        """Add a generated token to the ids that later choices depend on."""
        self._ids.append(token)
        if not (self._seen == token).any():
            self._seen = np.append(self._seen, token)

    def scores(self, logits: NDArray[Any]) -> NDArray[np.float32]:
        """Return logits [V] after penalties and bans, -inf for banned tokens; for greedy decoding, too."""
        options, generated = self._options, len(self._ids) - self._prompt
        scores = logits.astype(np.float32)  # a copy
        if options.repetition_penalty != 1:
            seen = self._seen[(self._seen >= 0) & (self._seen < len(scores))]
            penalty = np.float32(options.repetition_penalty)
            scores[seen] = np.where(scores[seen] < 0, scores[seen] * penalty, scores[seen] / penalty)
        banned = list(options.suppress_tokens) + (list(options.begin_suppress_tokens) if not generated else [])
        if options.no_repeat_ngram_size:
            banned += self._repeating(options.no_repeat_ngram_size)
        for word in options.bad_words_ids:
            if (len(word) > 1 or word[0] not in self._stop) and self._ends_with(word[:-1]):
                banned.append(word[-1])
        if generated < options.min_new_tokens or (not options.min_new_tokens and len(self._ids) < options.min_length):
            banned += self._stop
        scores[self._known(banned, scores)] = -np.inf
        return scores

    def probabilities(self, scores: NDArray[Any]) -> Scores:
        """Return the probabilities [V] after temperature and the filters of a random draw; their sum is 1.

        As in transformers, each filter sees what the one before it left.
        """
        options = self._options
        # The maximum is subtracted first, so that a division by a tiny temperature cannot overflow.
        warped: Scores = (scores.astype(np.float64) - np.max(scores)) / options.temperature
        if 0 < options.top_k < len(warped):
            warped[warped < np.partition(warped, -options.top_k)[-options.top_k]] = -np.inf
        if options.top_p < 1:
            order = np.argsort(warped, kind="stable")
            gone = np.cumsum(_softmax(warped)[order]) <= 1 - options.top_p
            gone[-1] = False
            warped[order[gone]] = -np.inf
        if options.min_p:
            probability = _softmax(warped)
            warped[probability < options.min_p * probability.max()] = -np.inf
        if options.typical_p < 1:
            warped[_atypical(_softmax(warped), options.typical_p)] = -np.inf
        if options.epsilon_cutoff:
            warped[(_softmax(warped) < options.epsilon_cutoff) & (warped < warped.max())] = -np.inf
        return _softmax(warped)

    def _repeating(self, size: int) -> list[int]:
        """Return the ids that would complete a sequence of `size` ids that occurred."""
        if len(self._ids) < size:
            return []
        windows = np.lib.stride_tricks.sliding_window_view(np.array(self._ids), size)
        last = self._ids[len(self._ids) - size + 1 :]
        return [int(token) for token in windows[(windows[:, :-1] == last).all(axis=1), -1]]

    def _ends_with(self, sequence: Sequence[int]) -> bool:
        return not sequence or self._ids[-len(sequence) :] == list(sequence)

    @staticmethod
    def _known(ids: Sequence[int], scores: NDArray[Any]) -> list[int]:
        """Return each of `ids` once, without those that have no score."""
        return [token for token in set(ids) if 0 <= token < len(scores)]


def _softmax(scores: Scores) -> Scores:
    weight = np.exp(scores - np.max(scores))
    probability: Scores = weight / weight.sum()
    return probability


def _atypical(probability: Scores, mass: float) -> NDArray[np.bool_]:
    """Return [V] whether a token is outside of the most typical ones with the total probability `mass`."""
    with np.errstate(divide="ignore"):
        information = -np.log(probability)
    entropy = float(np.sum(probability * np.where(probability > 0, information, 0)))
    distance = np.abs(information - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int((np.cumsum(probability[order]) < mass).sum()), len(order) - 1)
    gone: NDArray[np.bool_] = distance > distance[order[last]]
    gone[order[0]] = False
    return gone
