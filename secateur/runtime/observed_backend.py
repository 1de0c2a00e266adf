# SPDX-License-Identifier: Apache-2.0
"""A backend that calls an observer after every run, and the replay of a run on another backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec
from secateur.runtime.backends import base
from secateur.runtime.receipt import Stopwatch

Buffers = Mapping[str, base.Buffer]
Observer = Callable[[str, Buffers, Buffers], None]
"""Callback with the name of a graph, its inputs and its outputs."""


class ObservedBackend(base.Backend):
    """Runs another backend (`inner`), and calls `observe` after every run.

    Decode steps are not recorded, because the graphs of a recorded step cannot be observed one by one.
    """

    def __init__(self, inner: base.Backend, observe: Observer) -> None:
        self._inner, self._observe = inner, observe
        for name in ("masked_past", "most_rows", "most_batch", "most_text"):
            setattr(self, name, getattr(inner, name))

    def load(self, graph: GraphSpec) -> None:
        self._inner.load(graph)

    def check_files(self) -> None:
        self._inner.check_files()

    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> base.Buffer:
        return self._inner.allocate(shape, dtype)

    def run(self, graph: str, inputs: Buffers, outputs: Buffers) -> None:
        self._inner.run(graph, inputs, outputs)
        self._observe(graph, inputs, outputs)

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        return self._inner.clock(watch, stage)

    def describe(self) -> dict[str, str]:
        return self._inner.describe()

    def close(self) -> None:
        self._inner.close()


def replay(backend: base.Backend, graph: str, inputs: Buffers, outputs: Buffers) -> dict[str, base.Array]:
    """Repeat a run of another backend on `backend`, with the same inputs and shapes; return the outputs."""
    copies = {name: backend.allocate(buffer.shape, buffer.dtype) for name, buffer in inputs.items()}
    for name, buffer in inputs.items():
        copies[name].write(buffer.numpy())
    results = {name: backend.allocate(buffer.shape, buffer.dtype) for name, buffer in outputs.items()}
    backend.run(graph, copies, results)
    return {name: result.numpy() for name, result in results.items()}
