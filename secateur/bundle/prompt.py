# SPDX-License-Identifier: Apache-2.0
"""The chat template of a bundle, rendered once at export (prompt.json)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prompt:
    """A conversation is the images, first[0] + question + first[1], answer, next[0] + question + next[1], ...

    first  text around the first question, right after the last image token
    next   text around each further question, right after an answer without its stop token; None: one question only
    stop   token ids that end an answer
    pad    token id that fills a batch on the right
    """

    first: tuple[str, str]
    next: tuple[str, str] | None
    stop: tuple[int, ...]
    pad: int
