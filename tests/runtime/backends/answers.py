# SPDX-License-Identifier: Apache-2.0
"""Compare the answers of two backends on the hand-made bundle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secateur.runtime import Pipeline

OPTIONS: dict[str, Any] = {"max_new_tokens": 8}


def check_same_answers(
    found: Pipeline,
    wanted: Pipeline,
    schedule: str,
    picture: Callable[[int], NDArray[np.uint8]],
    tolerance: float = 0.0,
) -> None:
    """Single questions, a batch and a chat have equal tokens; the first logits differ by at most `tolerance`."""
    both = found, wanted
    for seed, question in enumerate(("what color is the seven ?", "red ?")):
        got, want = (p.ask(picture(seed), question, schedule, **OPTIONS) for p in both)
        assert got.tokens == want.tokens and got.kept == want.kept
        np.testing.assert_allclose(got.first_logits, want.first_logits, rtol=tolerance, atol=tolerance)
    batches = [p.ask([picture(0), picture(1)], ["red ?", "three"], schedule, **OPTIONS) for p in both]
    assert [a.tokens for a in batches[0]] == [a.tokens for a in batches[1]]
    chats = [p.open(picture(2), schedule) for p in both]
    for question in ("red ?", "where is the seven ?"):
        got, want = (chat.ask(question, **OPTIONS) for chat in chats)
        assert got.tokens == want.tokens
