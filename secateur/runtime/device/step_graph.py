# SPDX-License-Identifier: Apache-2.0
"""A step that is done again and again, as one CUDA graph: first for warming up, then recorded, then only launched.

A CUDA graph holds bare addresses, and the state of the TensorRT contexts that it was recorded from. So it is good only
as long as its memory lives and none of its contexts was given another shape or address; else it is recorded anew.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from secateur.errors import SecateurError
from secateur.runtime.device.memory import Block
from secateur.runtime.device.stream import Stream

logger = logging.getLogger(__name__)


class StepGraph:
    """At most one recording: another step on the same contexts would spoil it anyway."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._warm = False
        self._key: weakref.ref[Hashable] | None = None
        self._graph: Any = None
        self._contexts: set[object] = set()
        self._blocks: set[weakref.ref[Block]] = set()
        self._stepping = False
        self._refused: str | None = None

    def repeat(self, key: Hashable, step: Callable[[], None]) -> None:
        """Do `step`; the second time in a row that the key is the same object it is recorded, then only launched.

        The key is not kept alive: with it goes the memory of its buffers, and with that the recording.
        """
        same = self._warm and self._key is not None and self._key() is key
        if same and self._graph is not None:
            self._stream.launch(self._graph)
        elif same and self._refused is None:
            self._record(key, step)
        else:
            self._warm_up(key, step)

    def use(self, context: object, changed: bool, blocks: Iterable[Block]) -> None:
        """To be called before each run: `changed` if the context got another shape or address for it.

        Raises:
            SecateurError: it changes while it is recorded.
        """
        if self._stream.capturing and changed:
            raise SecateurError("a step that is recorded must run on the same buffers every time")
        if self._stepping:
            self._contexts.add(context)
            self._blocks.update(weakref.ref(block, self._void) for block in blocks)
        elif changed and context in self._contexts:
            self.clear()

    def clear(self) -> None:
        """Forget the step and what it uses; the next one warms up."""
        self._void()
        self._contexts.clear()
        self._blocks.clear()

    def _void(self, _: object = None) -> None:
        """Forget the step; also called when one of its blocks is no more."""
        graph, self._graph, self._warm, self._key = self._graph, None, False, None
        if graph is not None:
            self._stream.forget(graph)

    def _warm_up(self, key: Hashable, step: Callable[[], None]) -> None:
        self.clear()
        self._stepping = True
        try:
            step()
        finally:
            self._stepping = False
        self._warm, self._key = True, weakref.ref(key)

    def _record(self, key: Hashable, step: Callable[[], None]) -> None:
        try:
            self._graph = self._stream.record(step)
        except SecateurError as problem:
            self._refused = str(problem)
            logger.warning("a decode step cannot be a CUDA graph, its graphs are launched one by one: %s", problem)
            self._warm_up(key, step)
        else:
            self._stream.launch(self._graph)
