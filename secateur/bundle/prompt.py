# SPDX-License-Identifier: Apache-2.0
"""The chat template of a bundle, rendered once at export (prompt.json), and the checkpoint's settings for answers."""

from __future__ import annotations

from dataclasses import dataclass

from secateur.bundle.sampling import Sampling

SCHEMA = 2
LONGEST_TEXT = 1 << 16
"""Characters before or after a question; the system prompt is in the head of the layout, as token ids."""


@dataclass(frozen=True)
class TurnRules:
    """What the chat template does to the text of a turn, found by rendering it at export.

    trimmed    characters that it removes from the left and from the right end
    rewritten  texts that make it show something else than the text, such as </think>
    """

    trimmed: tuple[str, str] = ("", "")
    rewritten: tuple[str, ...] = ()

    def trim(self, text: str) -> str:
        """Return `text` without the characters that the template removes from its ends."""
        left, right = self.trimmed
        text = text.lstrip(left) if left else text
        return text.rstrip(right) if right else text

    def rewrites(self, text: str) -> str | None:
        """Return the first of the `rewritten` texts in `text`, if there is one."""
        return next((part for part in self.rewritten if part in text), None)


@dataclass(frozen=True)
class Prompt:
    """Text of a conversation: images, first[0] + question + first[1], answer, next[0] + question + next[1], ...

    first        text before and after the first question, which follows the last image token
    next         text before and after each follow-up question, which follows an answer without its stop token; None:
                 only one question is possible
    stop         token ids that end an answer
    pad          token id for padding on the right
    image_token  text of the token that stands for a vision token; "": not known, in a bundle of schema 1
    one_question why only one question is possible
    question     what the template does to a question
    answer       what it does to an earlier answer
    gap          white space that it shows before an earlier answer; the answer itself began with it
    sampling     settings for answers in the checkpoint's generation_config.json
    schema       1: without the fields from image_token on
    """

    first: tuple[str, str]
    next: tuple[str, str] | None
    stop: tuple[int, ...]
    pad: int
    image_token: str = ""
    one_question: str = ""
    question: TurnRules = TurnRules()
    answer: TurnRules = TurnRules()
    gap: str = ""
    sampling: Sampling = Sampling()
    schema: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.schema <= SCHEMA:
            raise ValueError(f"prompt has schema {self.schema}, this version reads up to {SCHEMA}; install a newer one")
        for text in (*self.first, *(self.next or ())):
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"a text of the template has {len(text)} characters, the most is {LONGEST_TEXT}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("a text of the template is not valid UTF-8") from None
