# SPDX-License-Identifier: Apache-2.0
"""Encode text that contains the spelling of special tokens as plain text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import tokenizers

# A Unicode noncharacter, which valid text for interchange does not contain.
ANCHOR = "\U0010fffe"


class LiteralTokenizer:
    """A copy of a tokenizer that does not recognize the spelling of special tokens.

    They are removed from the added tokens and, where the vocabulary lists them (whole words and unigrams match its
    entries), renamed. Ids stay the same.
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
        """Return the ids of `text` following a special token; none of them is special, except "unknown"."""
        ids = self._tokenizer.encode(ANCHOR + text.replace(ANCHOR, "\ufffd"), add_special_tokens=False).ids
        return list(ids[1:])


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Rename entries of a model's vocabulary, and remove the merges that produce them."""
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
