# SPDX-License-Identifier: Apache-2.0
"""Check that a question and its answer fit the model, the engines and the cache."""

from __future__ import annotations

from secateur.bundle.sampling import GREEDY, Sampling
from secateur.errors import BadPrompt, InputError
from secateur.runtime.cache import no_room
from secateur.runtime.chain import Chain
from secateur.runtime.decoder_inputs import TokenBatch
from secateur.runtime.tokenizer import Tokenizer

CHAT_ROWS = 1024
"""Rows of a chat after its images, if the user does not say."""


def chat_capacity(chain: Chain, rows: int | None) -> int:
    """Return the cache rows of a chat: `rows`, or by default as many as `CHAT_ROWS` and the model allow.

    Raises:
        InputError: `rows` are no more than the images need, or more than model and backend take.
    """
    images, context = chain.manifest.layout.rows, chain.manifest.dimensions.context
    most = min(context, chain.backend.most_rows or context)
    chosen = min(most, images + CHAT_ROWS) if rows is None else rows
    if not isinstance(chosen, int) or not images < chosen <= most:
        raise InputError(
            f"capacity must be above {images} (the rows of the images) and at most {most} (the limit of model and "
            f"backend), got {chosen!r}"
        )
    return chosen


def check_question(chain: Chain, tokenizer: Tokenizer, question: str, sampling: Sampling) -> None:
    """Check that a first question and its answer fit.

    Raises:
        BadPrompt: the question is empty, or they do not.
    """
    layout = chain.manifest.layout
    rows = TokenBatch.prompt(layout, [tokenizer.first(question)], tokenizer.prompt.pad)
    answer_length(chain, rows, sampling, True, chain.backend.most_rows, layout.rows)


def answer_length(
    chain: Chain, rows: TokenBatch, sampling: Sampling, given: bool, room: int | None, image: int = 0
) -> int:
    """Check that `rows` and an answer fit, and return the most tokens of the answer.

    given  whether the user gave max_new_tokens; else a longer default of the checkpoint is lowered to what fits
    room   free rows of the cache; None: as many as needed
    image  number of first rows that are the images and the text before them

    Raises:
        BadPrompt: they do not; the message has the bound.
    """
    context, count = chain.manifest.dimensions.context, rows.input_ids.shape[1]
    text, most = count - image, chain.backend.most_text
    if most is not None and text > most:
        raise BadPrompt(
            f"the question has {text} rows with its template, the engines take at most {most}; shorten it, or "
            "build them with a larger --max-text"
        )
    first = chain.manifest.layout.numbered(1)[0][0]  # some models count positions from 1
    used, new = int(rows.position_ids.max()) + 1 - first, sampling.max_new_tokens
    if not given and new > GREEDY.max_new_tokens:
        free = min(context - used, new if room is None else room - count)
        new = max(GREEDY.max_new_tokens, min(new, free))
    if used + new > context:
        raise BadPrompt(
            f"the prompt and {new} new tokens need {used + new} positions, the model has {context}; "
            "shorten the prompt, begin a new chat, or lower max_new_tokens"
        )
    if room is not None and count + new > room:
        raise no_room(count, room, new)
    return new
