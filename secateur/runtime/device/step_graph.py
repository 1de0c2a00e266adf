# SPDX-License-Identifier: Apache-2.0
"""Run a repeated step as one CUDA graph: the first run warms up, the second is recorded, later ones replay it.

A CUDA graph contains bare addresses and the state of the TensorRT contexts at recording. It is valid only while its
memory exists and no context got another shape or address; otherwise it is recorded again. `runtime.recorded_step`
provides such a step for decoding.
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
    """Holds at most one recording: another step on the same contexts would invalidate it."""

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
        """Run `step`; record it the second time in a row with the same key object, then replay the recording.

        The key is not kept alive: when it is deleted, its buffers are freed and the recording is dropped.
        """
        same = self._warm and self._key is not None and self._key() is key
        if same and self._graph is not None:
            self._stream.launch(self._graph)
        elif same and self._refused is None:
            self._record(key, step)
        else:
            self._warm_up(key, step)

    def use(self, context: object, changed: bool, blocks: Iterable[Block]) -> None:
        """Call this before each run of a context; `changed`: it got another shape or address for it.

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
        """Drop the recording and its contexts and blocks; the next step warms up."""
        self._void()
        self._contexts.clear()
        self._blocks.clear()

    def _void(self, _: object = None) -> None:
        """Drop the recording; also called when one of its blocks is freed."""
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
