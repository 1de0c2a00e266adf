# SPDX-License-Identifier: Apache-2.0
"""The chat template of a bundle, rendered once at export (prompt.json)."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_TEXT = 1 << 16
"""Characters before or after a question; the system prompt is in the head of the layout, as token ids."""


@dataclass(frozen=True)
class Prompt:
    """Text of a conversation: images, first[0] + question + first[1], answer, next[0] + question + next[1], ...

    first  text before and after the first question, which follows the last image token
    next   text before and after each follow-up question, which follows an answer without its stop token; None: only one
           question is possible
    stop   token ids that end an answer
    pad    token id for padding on the right
    """

    first: tuple[str, str]
    next: tuple[str, str] | None
    stop: tuple[int, ...]
    pad: int

    def __post_init__(self) -> None:
        for text in (*self.first, *(self.next or ())):
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"a text of the template has {len(text)} characters, the most is {LONGEST_TEXT}")
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                raise ValueError("a text of the template is not valid UTF-8") from None
