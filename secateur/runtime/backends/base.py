# SPDX-License-Identifier: Apache-2.0
"""Base class of the backends, which run graphs on buffers, and the checks that they share."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.symbolic_shape import bind, resolve_shapes
from secateur.errors import BackendMissing, InputError
from secateur.runtime.receipt import Stopwatch

Array = NDArray[Any]
BF16 = "bfloat16"
"""Name of bf16 in numpy, after `register_dtype`."""


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

    def check_files(self) -> None:  # noqa: B027  # most backends copy what they read
        """Check, before a question, that the files that stay open have not changed since they were opened.

        Raises:
            BadBundle: one has.
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


def check_device(backend: str, device: str | None, choices: tuple[str, ...]) -> str:
    """Return the requested device, or the first of `choices`.

    Raises:
        InputError: the backend does not support the device.
    """
    if device is not None and device not in choices:
        raise InputError(f"backend '{backend}' runs on {' or '.join(choices)}, not on '{device}'; choose one of these")
    return device or choices[0]


def check_slices(index: Sequence[slice]) -> None:
    """Check that `Buffer.view` supports the slices.

    Raises:
        ValueError: the step of the first axis is below 1, or another step is not 1.
    """
    steps = [1 if part.step is None else part.step for part in index]
    if any(step < 1 or (axis and step > 1) for axis, step in enumerate(steps)):
        raise ValueError("a view takes slices of step 1; only on the first axis may the step be larger")


def check_buffers(graph: GraphSpec, inputs: Mapping[str, Any], outputs: Mapping[str, Any], kind: type[Any]) -> None:
    """Check that buffers have the type `kind` and match `graph`; a run uses addresses only and cannot check them.

    Raises:
        InputError: a tensor is missing, unknown, not contiguous, or of another dtype or shape.
    """
    for specs, buffers in ((graph.inputs, inputs), (graph.outputs, outputs)):
        if {spec.name for spec in specs} != buffers.keys():
            wanted = ", ".join(spec.name for spec in specs)
            raise InputError(f"graph '{graph.name}' takes {wanted}; got {', '.join(buffers)}")
        for spec in specs:
            buffer = buffers[spec.name]
            if not isinstance(buffer, kind) or not buffer.contiguous:
                raise InputError(f"graph '{graph.name}': {spec.name} is not a contiguous buffer of this backend")
            if buffer.dtype != np.dtype(spec.dtype):
                raise InputError(f"graph '{graph.name}': {spec.name} is {buffer.dtype}, not {spec.dtype}")
    try:
        symbols = bind(graph.inputs, {name: buffer.shape for name, buffer in inputs.items()})
        shapes = resolve_shapes(graph.outputs, symbols)
    except ValueError as problem:
        raise InputError(f"graph '{graph.name}' does not support these inputs: {problem}") from None
    for name, shape in shapes.items():
        if shape != outputs[name].shape:
            got = list(outputs[name].shape)
            raise InputError(f"graph '{graph.name}': {name} needs the shape {list(shape)}, not {got}")


def register_dtype(dtype: str) -> None:
    """Import ml_dtypes if the dtype of a manifest is bf16, so that np.dtype("bfloat16") works.

    Raises:
        BackendMissing: ml_dtypes is not installed.
    """
    if dtype == "bf16":
        try:
            importlib.import_module("ml_dtypes")
        except ImportError:
            raise BackendMissing("a bundle in bf16 needs the package ml_dtypes; pip install ml_dtypes") from None
