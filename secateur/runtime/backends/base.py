# SPDX-License-Identifier: Apache-2.0
"""What a backend is: it runs named graphs on named buffers, and knows nothing of language models."""

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
    """A block of memory where the backend wants it (host or device)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def view(self, *index: slice) -> Buffer:
        """Part of the same memory, one slice an axis; missing axes are whole. Writing to it writes here.

        Slices have step 1; that of the first axis may have a larger one.
        """
        ...

    def write(self, source: Buffer | Array) -> None:
        """Copy `source`, of the same shape, into this memory; an array may be changed as soon as this returns."""
        ...

    def numpy(self) -> Array:
        """The contents on the host; waits until they are there. May share memory: copy before the next run if kept."""
        ...


class Backend(ABC):
    """Opens graphs once and runs them many times. Not safe for use from several threads at once.

    A backend of a device may only note what is to be done, in order, and do it later: `Buffer.numpy` waits.

    fixed_shapes  decode steps should have the same shapes and buffers every time, see `repeat`
    masked_past   rows that the past of a prefill must have at least; they are masked
    most_rows     rows that a cache can have; None: no bound
    most_batch    samples that it takes at once; None: no bound
    most_text     rows of text that a question can have, with its template; None: no bound
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
            BadBundle: the file is damaged or does not have the tensors that `graph` declares.
        """

    @abstractmethod
    def allocate(self, shape: tuple[int, ...], dtype: np.dtype[Any] | type | str) -> Buffer:
        """A zero-filled buffer; a dimension may be 0."""

    @abstractmethod
    def run(self, graph: str, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> None:
        """Run the graph called `graph`, writing every output into the given buffer (contiguous, of the exact shape)."""

    def repeat(self, key: Hashable, step: Callable[[], None]) -> None:
        """Do `step`: nothing but runs, on the same buffers whenever `key` is the same object, so it may be recorded."""
        step()

    def clock(self, watch: Stopwatch, stage: str) -> AbstractContextManager[None]:
        """Add the time that the block's work takes, where it is done, to `stage`."""
        return watch(stage)

    def describe(self) -> dict[str, str]:
        """The device and the versions of its libraries, for the record of a measurement; empty for the CPU."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free what `load` opened. The backend cannot be used afterwards."""
