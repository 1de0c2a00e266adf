# SPDX-License-Identifier: Apache-2.0
"""Check that a question and its answer fit the model, the engines and the cache."""

from __future__ import annotations

from secateur.bundle.sampling import GREEDY, Sampling
from secateur.errors import BadPrompt
from secateur.runtime.cache import no_room
from secateur.runtime.chain import Chain
from secateur.runtime.decoder_inputs import TokenBatch


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
