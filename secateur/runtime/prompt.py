# SPDX-License-Identifier: Apache-2.0
"""The chat template, rendered once at export (prompt.json), and the tokenizer that a device needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from secateur.errors import BadBundle, BadPrompt


@dataclass(frozen=True)
class Prompt:
    """A conversation is head, image, first[0] + question + first[1], answer, next[0] + question + next[1], ...

    head   token ids before the image
    first  text around the first question, right behind the image
    next   text around each further question, right behind an answer without its stop token
    stop   token ids that end an answer
    pad    token id that fills a batch on the right
    """

    head: tuple[int, ...]
    first: tuple[str, str]
    next: tuple[str, str]
    stop: tuple[int, ...]
    pad: int


class Tokenizer:
    """Questions to token ids and back, with the template of `prompt` around them. Takes the tokenizer for itself."""

    def __init__(self, prompt: Prompt, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.prompt = prompt
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {number: token.content for number, token in added.items() if token.special}
        plain = (n for n, t in added.items() if t.special and not (t.lstrip or t.rstrip or t.single_word))
        self._anchor = next(plain, None)
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown = None if unknown is None else self._tokenizer.token_to_id(unknown)

    @classmethod
    def read(cls, prompt: Prompt, path: Path) -> Tokenizer:
        """From a tokenizer.json.

        Raises:
            BadBundle: `path` is no tokenizer.json.
        """
        try:
            return cls(prompt, tokenizers.Tokenizer.from_file(str(path)))
        except Exception as problem:
            raise BadBundle(f"{path} is no tokenizer ({problem}); export the bundle again") from None

    def first(self, question: str) -> list[int]:
        """Token ids behind the image, up to the answer.

        Raises:
            BadPrompt: the question is empty.
        """
        return self._encode(question, self.prompt.first)

    def next(self, question: str) -> list[int]:
        """Token ids behind an answer without its stop token, up to the next answer.

        Raises:
            BadPrompt: the question is empty.
        """
        return self._encode(question, self.prompt.next)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; special tokens give none."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return text

    def _encode(self, question: str, around: tuple[str, str]) -> list[int]:
        if not isinstance(question, str):
            raise BadPrompt(f"a prompt is text, not a {type(question).__name__}")
        try:
            question.encode("utf-8")
        except UnicodeEncodeError:
            raise BadPrompt("the prompt is not valid UTF-8; send it as UTF-8 text") from None
        if not question.strip():
            raise BadPrompt("the prompt is empty; ask something")
        before, after = self._template(around[0]), self._template(around[1])
        whole = self._template(around[0] + question + around[1])
        if self._specials(whole, question) == self._specials(before + after, question):
            return whole
        # The question itself spells a special token: take it as plain text, between the parts of the template.
        return before + self._plain(question) + after

    def _specials(self, ids: list[int], question: str) -> list[int]:
        """The special tokens among `ids`; "unknown" counts only if the question spells it out."""
        known = None if self._unknown is None or self._special.get(self._unknown, "") in question else self._unknown
        return [i for i in ids if i in self._special and i != known]

    def _template(self, text: str) -> list[int]:
        """Ids of text in the middle of a prompt: behind a special token no prefix space is added."""
        self._tokenizer.encode_special_tokens = False
        if self._anchor is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        ids = self._tokenizer.encode(self._special[self._anchor] + text, add_special_tokens=False).ids
        return list(ids[1:])

    def _plain(self, text: str) -> list[int]:
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        typed = {number for number, content in self._special.items() if content in text}
        return [i for i in ids if i not in typed or i == self._unknown]


class TextStream:
    """Decodes tokens one at a time; the pieces joined are the text of all tokens."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._given = ""

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is incomplete."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        if text.endswith("\ufffd") or not text.startswith(self._given):
            return ""
        return self._give(text)

    def finish(self) -> str:
        """The text that was held back."""
        return self._give(self._tokenizer.decode(self._ids))

    def _give(self, text: str) -> str:
        piece, self._given = text[len(self._given) :], text
        return piece
