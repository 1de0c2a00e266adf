# SPDX-License-Identifier: Apache-2.0
"""Run a repeated step as one CUDA graph: the first call warms up, the second is recorded, later calls replay it.

A CUDA graph contains addresses and the state of the TensorRT contexts at recording. It is valid while its memory exists
and its contexts keep their shapes and addresses; otherwise it is recorded again. `runtime.recorded_step` has such a
step for decoding.
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
    """Has at most one recording, because another step on the same contexts would invalidate it."""

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

        The key is a weak reference: when it is deleted, its buffers are freed and the recording is dropped.
        """
        same = self._warm and self._key is not None and self._key() is key
        if same and self._graph is not None:
            self._stream.launch(self._graph)
        elif same and self._refused is None:
            self._record(key, step)
        else:
            self._warm_up(key, step)

    def use(self, context: object, changed: bool, blocks: Iterable[Block]) -> None:
        """Register a run of a context before it starts; `changed`: it has another shape or address than before.

        Raises:
            SecateurError: it changes during a recording.
        """
        if self._stream.capturing and changed:
            raise SecateurError("a recorded step must use the same buffers every time")
        if self._stepping:
            self._contexts.add(context)
            self._blocks.update(weakref.ref(block, self._void) for block in blocks)
        elif changed and context in self._contexts:
            self.clear()

    def clear(self) -> None:
        """Drop the recording with its contexts and blocks; the next step warms up."""
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
            logger.warning(
                "a decode step cannot be recorded as a CUDA graph, its graphs are launched one by one: %s", problem
            )
            self._warm_up(key, step)
        else:
            self._stream.launch(self._graph)
