# SPDX-License-Identifier: Apache-2.0
"""Encode text that contains the spelling of special tokens as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

ANCHOR = "\U0010fffe"
"""A Unicode noncharacter: text from other programs should not contain it."""


class LiteralTokenizer:
    """A copy of a tokenizer that does not recognize the spelling of special tokens.

    Special tokens are removed from the added tokens. If the vocabulary lists them too, they are renamed there, because
    word-level and unigram models match its entries. Ids stay the same.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: Mapping[int, str]) -> None:
        names = {content: f"{ANCHOR}{number}" for number, content in special.items()}
        description = json.loads(tokenizer.to_str())
        description["added_tokens"] = [t for t in description["added_tokens"] if t["id"] not in special]
        description["post_processor"] = None
        _rename(description["model"], names)
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(description))
        self._tokenizer.add_special_tokens([tokenizers.AddedToken(ANCHOR, normalized=False, special=True)])

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text` as it follows a special token; no id is special, except "unknown"."""
        ids = self._tokenizer.encode(ANCHOR + text.replace(ANCHOR, "\ufffd"), add_special_tokens=False).ids
        return list(ids[1:])


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename vocabulary entries of a model, and remove the merges that produce them."""
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(entry, entry): number for entry, number in vocabulary.items()}
    else:
        model["vocab"] = [[names.get(entry, entry), score] for entry, score in vocabulary]
    if "merges" in model:
        pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
        model["merges"] = [pair for pair in pairs if names.keys().isdisjoint((*pair, "".join(pair)))]
    if model.get("unk_token") in names:
        model["unk_token"] = names[model["unk_token"]]
