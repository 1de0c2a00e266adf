# SPDX-License-Identifier: Apache-2.0
"""Check that a question and its answer fit the model, the engines and the cache."""

from __future__ import annotations

from secateur.errors import BadPrompt
from secateur.runtime.cache import no_room
from secateur.runtime.chain import Chain
from secateur.runtime.decoder_inputs import TokenBatch


def check_fits(chain: Chain, rows: TokenBatch, new: int, room: int | None, image: int = 0) -> None:
    """Check that `rows` and an answer of `new` tokens fit.

    room   free rows of the cache; None: no limit
    image  number of rows that are the images and the text before them

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
    needed = int(rows.position_ids.max()) + 1 - first + new
    if needed > context:
        raise BadPrompt(
            f"the prompt and {new} new tokens need {needed} positions, the model has {context}; "
            "shorten the prompt, begin a new chat, or lower max_new_tokens"
        )
    if room is not None and count + new > room:
        raise no_room(count, room, new)
