# SPDX-License-Identifier: Apache-2.0
"""Settings for generating one answer; those of the checkpoint are the defaults of a bundle (prompt.json)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from secateur.errors import InputError


def _setting(default: Any, help: str) -> Any:
    """Return a field whose `help` is shown by the flag of `secateur run`."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Sampling:
    """Settings for generating one answer, with the names and the meaning that they have in transformers' `generate`.

    Prompt ids count where transformers counts them: all rows of the conversation, each vision token as one image token.

    max_new_tokens        maximum number of generated tokens, at least 1
    temperature           0: the most likely token (do_sample=False); above 0: divides the logits before a random draw
    top_p                 the draw is among the most likely tokens whose probabilities add up to this, in (0, 1]
    seed                  of the random draw; every sample of a batch has its own generator with this seed
    top_k                 the draw is among this many most likely tokens; 0: all
    min_p                 a drawn token is at least this times as likely as the most likely one, in [0, 1]
    typical_p             as top_p, among the tokens whose information is closest to the entropy, in (0, 1]
    epsilon_cutoff        a drawn token has at least this probability, in [0, 1)
    repetition_penalty    divides positive logits of ids that occurred, multiplies negative ones; above 0, 1: none
    no_repeat_ngram_size  a sequence of this many ids occurs only once; 0: no limit
    min_new_tokens        no stop token before this many generated tokens
    min_length            the same, with the rows of the conversation; unused with min_new_tokens
    stop_strings          texts that end an answer; they are not part of its text
    suppress_tokens       ids that are never generated
    begin_suppress_tokens ids that are not generated first
    bad_words_ids         sequences of ids that are never generated

    Raises:
        InputError: a setting is out of bounds.
    """

    max_new_tokens: int = _setting(64, "longest answer")
    temperature: float = _setting(0.0, "0 takes the most likely token")
    top_p: float = _setting(1.0, "total probability of the tokens to draw from")
    seed: int = _setting(0, "seed of the random draw")
    top_k: int = _setting(0, "number of tokens to draw from, 0: all")
    min_p: float = _setting(0.0, "least probability of a drawn token, relative to the most likely one")
    typical_p: float = _setting(1.0, "total probability of the most typical tokens to draw from")
    epsilon_cutoff: float = _setting(0.0, "least probability of a drawn token")
    repetition_penalty: float = _setting(1.0, "divides the logits of tokens that occurred, 1: none")
    no_repeat_ngram_size: int = _setting(0, "length of the sequences that occur only once, 0: no limit")
    min_new_tokens: int = _setting(0, "no end before this many tokens")
    min_length: int = _setting(0, "no end before this many rows of the conversation")
    stop_strings: tuple[str, ...] = _setting((), "texts that end an answer")
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for name in ("stop_strings", "suppress_tokens", "begin_suppress_tokens", "bad_words_ids"):
            object.__setattr__(self, name, _tuples(getattr(self, name)))
        for name in ("top_k", "no_repeat_ngram_size", "min_new_tokens", "min_length", "seed"):
            self._check(name, _whole, lambda x: x >= 0, "an integer of at least 0")
        self._check("max_new_tokens", _whole, lambda x: x >= 1, "an integer of at least 1")
        self._check("temperature", _real, lambda x: x >= 0, "a number of at least 0 (0 is greedy)")
        for name in ("top_p", "typical_p"):
            self._check(name, _real, lambda x: 0 < x <= 1, "above 0 and at most 1")
        self._check("min_p", _real, lambda x: 0 <= x <= 1, "at least 0 and at most 1")
        self._check("epsilon_cutoff", _real, lambda x: 0 <= x < 1, "at least 0 and below 1")
        self._check("repetition_penalty", _real, lambda x: 1e-30 <= x <= 1e30, "a number from 1e-30 to 1e30")
        self._check(
            "stop_strings",
            _tuple,
            lambda x: all(isinstance(t, str) and t for t in x),
            "a list of texts, none of them empty",
        )
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            self._check(name, _tuple, _ids, "a list of token ids")
        sequences = "a list of sequences of token ids, none of them empty"
        self._check("bad_words_ids", _tuple, lambda x: all(_tuple(s) and s and _ids(s) for s in x), sequences)

    def _check(self, name: str, kind: Any, within: Any, wanted: str) -> None:
        value = getattr(self, name)
        if not kind(value) or not within(value):
            raise InputError(f"{name} must be {wanted}, got {value!r}")

    def changed(self) -> dict[str, Any]:
        """Return the settings that differ from greedy decoding without any other rule, by name."""
        return {name: value for name, value in vars(self).items() if value != getattr(GREEDY, name)}


def _whole(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _tuples(value: Any) -> Any:
    """Return lists as tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _tuple(value: object) -> bool:
    return isinstance(value, tuple)


def _ids(values: tuple[Any, ...]) -> bool:
    return all(_whole(value) and value >= 0 for value in values)


GREEDY = Sampling()
"""The most likely token at each step, up to 64 tokens."""
