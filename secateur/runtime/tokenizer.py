# SPDX-License-Identifier: Apache-2.0
"""Tokenizer of a bundle, with the chat template that was rendered at export (prompt.json)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from secateur.bundle.prompt import Prompt
from secateur.errors import BadBundle, BadPrompt, InputError
from secateur.runtime.image_marker import without_markers
from secateur.runtime.tokenizer_file import panics, read_tokenizer

ANCHOR = "\U0010fffe"
"""A Unicode noncharacter: text from other programs should not contain it."""
MOST_CHARACTERS = 1 << 20
"""Of a question; a tokenizer takes up to 600 bytes for each."""


class Tokenizer:
    """Encodes questions with the template in `prompt`, and decodes answers. Modifies the given tokenizer."""

    def __init__(self, prompt: Prompt, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = False
        self.prompt = prompt
        added = self._tokenizer.get_added_tokens_decoder()
        self._special = {n: t.content for n, t in added.items() if t.special or n in (prompt.pad, *prompt.stop)}
        plain = (n for n in self._special if not (added[n].lstrip or added[n].rstrip or added[n].single_word))
        self._anchor = next(plain, None)
        image = self._tokenizer.token_to_id(prompt.image_token) if prompt.image_token else None
        self.image_id: int = -1 if image is None else image
        """Id of a vision token in a prompt; -1: not known."""
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        self._unknown = None if unknown is None else self._tokenizer.token_to_id(unknown)
        self._plain: LiteralTokenizer | None = None

    @classmethod
    def read(cls, prompt: Prompt, path: Path, vocabulary: int | None = None) -> Tokenizer:
        """Read a tokenizer.json, and encode and decode a question.

        vocabulary  number of token ids of the model; None: not compared

        Raises:
            BadBundle: see `read_tokenizer`; or it cannot encode a question.
        """
        made = read_tokenizer(path, BadBundle, vocabulary)
        with panics(f"{path} is not a tokenizer.json of this bundle", BadBundle):
            tokenizer = cls(prompt, made)
        try:
            tokenizer.decode(tokenizer.first("What is 1 + 1?"))
        except InputError as problem:
            raise BadBundle(f"{path}: {problem}; export the bundle again") from None
        return tokenizer

    def first(self, question: str) -> list[int]:
        """Return the token ids between the last image token and the answer.

        Raises:
            BadPrompt: the question is empty.
        """
        return self._encode(question, self.prompt.first)

    def next(self, question: str) -> list[int]:
        """Return the token ids between an answer (without its stop token) and the next answer.

        Raises:
            BadPrompt: the question is empty, or the model supports only one question.
        """
        if self.prompt.next is None:
            reason = f" ({self.prompt.one_question})" if self.prompt.one_question else ""
            raise BadPrompt(f"this model takes one question only{reason}; start a new conversation")
        return self._encode(question, self.prompt.next)

    def check_repeated(self, answer: Sequence[int]) -> None:
        """Check that the chat template shows a generated answer as it is when another question follows.

        Raises:
            BadPrompt: it does not, so the cached rows of the answer would be wrong.
        """
        rules, text = self.prompt.answer, self.decode(answer)
        if part := rules.rewrites(self._decoded(answer, skip_special=False)):
            what = f"rewrites an earlier answer that contains {part!r}"
        elif (kept := rules.trim(text)) != text and text != self.prompt.gap + kept:
            what = "removes white space around an earlier answer"
        else:
            return
        raise BadPrompt(f"the chat template {what}, so the cached answer does not fit; start a new conversation")

    def stops(self, before: Sequence[int], answer: Sequence[int], strings: Sequence[str]) -> bool:
        """Return whether one of `strings` ends in `answer`, which follows the ids `before`; special tokens count.

        It is asked after each token, so it decodes the last ids only: a character has up to four tokens.
        """
        if not strings:
            return False
        last = 4 * max(map(len, strings)) + 4
        told = [n for n in before[len(before) - max(0, last - len(answer)) :] if n >= 0]
        known = len(self._decoded(told, skip_special=False))
        text = self._decoded([*told, *answer[-last:]], skip_special=False)
        return any(text.find(each, max(0, known - len(each) + 1)) >= 0 for each in strings)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, without special tokens."""
        return self._decoded(ids, skip_special=True)

    def _decoded(self, ids: Sequence[int], skip_special: bool) -> str:
        with panics("the tokenizer cannot decode the answer", BadBundle):
            text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special)
        return text

    def _encode(self, question: str, around: tuple[str, str]) -> list[int]:
        if not isinstance(question, str):
            raise BadPrompt(f"a prompt must be text, not a {type(question).__name__}")
        try:
            question.encode("utf-8")
        except UnicodeEncodeError:
            raise BadPrompt("the prompt is not valid UTF-8; send it as UTF-8 text") from None
        if len(question) > MOST_CHARACTERS:
            raise BadPrompt(f"the prompt has {len(question)} characters, the most is {MOST_CHARACTERS}; shorten it")
        if not question.strip():
            raise BadPrompt("the prompt is empty; give a question")
        question = without_markers(question, self.prompt.image_token, self._special.values())
        question = self.prompt.question.trim(question)
        if part := self.prompt.question.rewrites(question):
            raise BadPrompt(f"the chat template rewrites a question that contains {part!r}; leave it out")
        with panics("the tokenizer cannot encode the question", BadBundle):
            return self._question(question, around)

    def _question(self, question: str, around: tuple[str, str]) -> list[int]:
        before, after = self._template(around[0]), self._template(around[1])
        whole = self._template(around[0] + question + around[1])
        if self._specials(whole, question) == self._specials(before + after, question):
            return whole
        return self._as_text(question, around)

    def _as_text(self, question: str, around: tuple[str, str]) -> list[int]:
        """Encode a question that contains the spelling of special tokens: only those of the template become special.

        The text between the template's special tokens is encoded in one piece, as for any other question.
        """
        if self._plain is None:
            self._plain = LiteralTokenizer(self._tokenizer, self._special)
        last, first = self._special_spans(around[0])[1], self._special_spans(around[1])[0]
        text = around[0][last:] + question + around[1][:first]
        return self._template(around[0][:last]) + self._plain.encode(text) + self._template(around[1][first:])

    def _special_spans(self, text: str) -> tuple[int, int]:
        """Return where the first special token of `text` starts and where the last one ends; (len(text), 0) if none."""
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        spans = [span for number, span in zip(encoded.ids, encoded.offsets, strict=True) if number in self._special]
        return (spans[0][0], spans[-1][1]) if spans else (len(text), 0)

    def _specials(self, ids: list[int], question: str) -> list[int]:
        """Return the special tokens in `ids`; "unknown" counts only if the question contains its spelling."""
        known = None if self._unknown is None or self._special.get(self._unknown, "") in question else self._unknown
        return [i for i in ids if i in self._special and i != known]

    def _template(self, text: str) -> list[int]:
        """Encode text in the middle of a prompt, where no prefix space is added: place it after a special token."""
        if self._anchor is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        ids = self._tokenizer.encode(self._special[self._anchor] + text, add_special_tokens=False).ids
        return list(ids[1:])


class TextStream:
    """Decodes tokens one at a time; the joined pieces are the text of all tokens before the first of `stop_strings`."""

    def __init__(self, tokenizer: Tokenizer, stop_strings: Sequence[str] = ()) -> None:
        self._tokenizer, self._strings = tokenizer, stop_strings
        self._ids: list[int] = []
        self._given = ""

    def push(self, token: int) -> str:
        """Return the text that `token` completes; "" while a character is incomplete or may begin a stop string."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        settled = _settled(before_stop(text, self._strings), self._strings)
        if text.endswith("\ufffd") or not settled.startswith(self._given):
            return ""
        return self._give(settled)

    def finish(self) -> str:
        """Return the remaining text."""
        return self._give(before_stop(self._tokenizer.decode(self._ids), self._strings))

    def _give(self, text: str) -> str:
        piece, self._given = text[len(self._given) :], text
        return piece


def before_stop(text: str, stop_strings: Sequence[str]) -> str:
    """Return `text` up to the first of the stop strings in it."""
    return text[: min((at for each in stop_strings if (at := text.find(each)) >= 0), default=len(text))]


def _settled(text: str, stop_strings: Sequence[str]) -> str:
    """Return `text` without an end that may be the beginning of a stop string."""
    starts = (each[:n] for each in stop_strings for n in range(len(each) - 1, 0, -1))
    return text[: len(text) - max((len(start) for start in starts if text.endswith(start)), default=0)]


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
