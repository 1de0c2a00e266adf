# SPDX-License-Identifier: Apache-2.0
"""What a backend is: it runs named graphs on named buffers, and knows nothing of language models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.artifacts import GraphSpec

Array = NDArray[Any]


class Buffer(Protocol):
    """A block of memory where the backend wants it (host or device)."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def view(self, *index: slice) -> Buffer:
        """Part of the same memory, one slice (step 1) an axis; missing axes are whole. Writing to it writes here."""
        ...

    def write(self, source: Buffer | Array) -> None:
        """Copy `source`, of the same shape, into this memory."""
        ...

    def numpy(self) -> Array:
        """The contents on the host. May share memory with the buffer: copy before the next run if kept."""
        ...


class Backend(ABC):
    """Opens graphs once and runs them many times. Not safe for use from several threads at once."""

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

    @abstractmethod
    def close(self) -> None:
        """Free what `load` opened. The backend cannot be used afterwards."""
