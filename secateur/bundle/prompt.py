# SPDX-License-Identifier: Apache-2.0
"""The chat template of a bundle, rendered once at export (prompt.json)."""

from __future__ import annotations

from dataclasses import dataclass


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
