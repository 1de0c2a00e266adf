# SPDX-License-Identifier: Apache-2.0
"""Several questions about one image; the image and all earlier turns stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator

from secateur.runtime.conversation import Conversation
from secateur.runtime.receipt import Answer
from secateur.runtime.sampling import Sampling


class Chat:
    """Made by Pipeline.open. The gates choose by the first question and hold for the whole chat. Close it when done."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation

    @property
    def schedule(self) -> str:
        """Name of the schedule that is run."""
        return self._conversation.schedule

    @property
    def room(self) -> int:
        """Cache rows that are free for questions and answers, 0 once it is closed."""
        return self._conversation.room

    def ask(
        self, prompt: str, max_new_tokens: int = 64, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Answer:
        """The answer to the next question; options as in Pipeline.ask.

        Raises:
            BadPrompt: the question is empty or does not fit; the chat stays as it was.
            InputError: an option is out of bounds.
        """
        options = Sampling(max_new_tokens, temperature, top_p, seed)
        return self._conversation.ask([prompt], options).answers()[0]

    def stream(
        self, prompt: str, max_new_tokens: int = 64, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0
    ) -> Iterator[str]:
        """Pieces of the answer to the next question; errors as for `ask`. What was not generated was not said."""
        options = Sampling(max_new_tokens, temperature, top_p, seed)
        return self._conversation.ask([prompt], options).text()

    def close(self) -> None:
        """Let another conversation have the cache; nothing more can be asked."""
        self._conversation.close()
