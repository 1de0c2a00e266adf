# SPDX-License-Identifier: Apache-2.0
"""Limits of the engines, from the user's options and the model's context length."""

from __future__ import annotations

from secateur.bundle.graph_plan import largest
from secateur.bundle.manifest import Manifest
from secateur.bundle.reader import Bundle
from secateur.engines.manifest import Limits
from secateur.errors import InputError
from secateur.runtime.tokenizer import Tokenizer

MAX_BATCH = 1024


def limits(manifest: Manifest, batch: int = 1, text: int | None = None, new_tokens: int | None = None) -> Limits:
    """Return the limits for a bundle, with room for its largest image size.

    None selects the default value, or less if the model's context is short.

    Raises:
        InputError: a number is below 1, or the rows together exceed the context; the message names the flag.
    """
    usual = Limits()
    for flag, value in (("--max-batch", batch), ("--max-text", text), ("--max-new-tokens", new_tokens)):
        if value is not None and value < 1:
            raise InputError(f"{flag} is {value}; it must be at least 1")
    if batch > MAX_BATCH:
        raise InputError(f"--max-batch is {batch}; it must be at most {MAX_BATCH}")
    layout, context = largest(manifest), manifest.dimensions.context
    image = layout.rows
    room = context - image
    if new_tokens is None:
        new_tokens = max(1, min(usual.new_tokens, room // 2 if text is None else room - text))
    if text is None:
        text = max(1, min(usual.text, room - new_tokens))
    made = Limits(batch, text, new_tokens)
    if made.capacity(layout) > context:
        raise InputError(
            f"{image} rows up to the image's end, --max-text {text} and --max-new-tokens {new_tokens} are "
            f"{made.capacity(layout)} rows; the model's context has {context}; lower --max-text or --max-new-tokens"
        )
    return made


def check_text(bundle: Bundle, made: Limits) -> None:
    """Check that a question fits into the limits.

    Raises:
        InputError: even a question of one letter does not fit, with its template.
    """
    least = len(Tokenizer.read(bundle.prompt, bundle.path("tokenizer.json")).first("a"))
    if made.text < least:
        raise InputError(
            f"--max-text is {made.text}; the shortest question has {least} rows with its template; "
            "raise --max-text or lower --max-new-tokens"
        )
