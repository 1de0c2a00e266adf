# SPDX-License-Identifier: Apache-2.0
"""Base class of a backend, which runs graphs on buffers; it is independent of language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.manifest import GraphSpec
from secateur.runtime.receipt import Stopwatch

Array = NDArray[Any]


class Buffer(Protocol):
    """A tensor in the memory of a backend (host or device)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def view(self, *index: slice) -> Buffer:
        """Return a part of the same memory: one slice per axis, missing axes are whole.

        Slices have step 1; only the first axis may have a larger step.
        """
        ...

    def write(self, source: Buffer | Array) -> None:
        """Copy `source`, of the same shape, into this memory; an array may be changed after this returns."""
        ...

    def numpy(self) -> Array:
        """Return the contents as an array, after waiting for them. It may share memory: copy it before the next run."""
        ...


class Backend(ABC):
    """Opens graphs once and runs them many times. Not thread-safe.

    A backend of a device may run work asynchronously, in order: `Buffer.numpy` waits.

    fixed_shapes  whether decode steps should have the same shapes and buffers every time, see `repeat`
    masked_past   minimum number of past rows in a prefill; these rows are masked
    most_rows     maximum rows of a cache; None: no limit
    most_batch    maximum samples of a batch; None: no limit
    most_text     maximum text rows of a question with its template; None: no limit
    """

    fixed_shapes: ClassVar[bool] = False
    masked_past: int = 0
    most_rows: int | None = None
    most_batch: int | None = None
    most_text: int | None = None

    @abstractmethod
    def load(self, graph: GraphSpec) -> None:
        """Open `graph` so that `run` can use it.

        Raises:
            BadBundle: the file is damaged, or its tensors differ from those of `graph`.
        """

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> Buffer:
        """Return a zero-filled buffer; a dimension may be 0."""

    @abstractmethod
    def run(self, graph: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph named `graph`; every output is written to its buffer (contiguous, of the exact shape)."""

    def repeat(self, key: Hashable, step: Callable[[], None]) -> None:
        """Call `step`, which only runs graphs, on the same buffers for the same `key` object; it may be recorded."""
        step()

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        """Add the time of the work in the block, measured on its device, to `stage`."""
        return watch(stage)

    def describe(self) -> dict[str, str]:
        """Return the device and the versions of its libraries, for a report of measurements; empty for the CPU."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free all graphs. The backend cannot be used afterwards."""
