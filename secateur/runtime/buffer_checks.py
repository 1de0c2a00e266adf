# SPDX-License-Identifier: Apache-2.0
"""Checks shared by backends: the requested device, and the buffers of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from secateur.bundle.manifest import GraphSpec
from secateur.bundle.symbolic_shape import bind, resolve_shapes
from secateur.errors import InputError


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
        ValueError: a tensor is missing, unknown, not contiguous, or of another dtype or shape.
    """
    for specs, buffers in ((graph.inputs, inputs), (graph.outputs, outputs)):
        if {spec.name for spec in specs} != buffers.keys():
            wanted = ", ".join(spec.name for spec in specs)
            raise ValueError(f"graph '{graph.name}' takes {wanted}; got {', '.join(buffers)}")
        for spec in specs:
            buffer = buffers[spec.name]
            if not isinstance(buffer, kind) or not buffer.contiguous:
                raise ValueError(f"graph '{graph.name}': {spec.name} is not a contiguous buffer of this backend")
            if buffer.dtype != np.dtype(spec.dtype):
                raise ValueError(f"graph '{graph.name}': {spec.name} is {buffer.dtype}, not {spec.dtype}")
    symbols = bind(graph.inputs, {name: buffer.shape for name, buffer in inputs.items()})
    for name, shape in resolve_shapes(graph.outputs, symbols).items():
        if shape != outputs[name].shape:
            got = list(outputs[name].shape)
            raise ValueError(f"graph '{graph.name}': {name} needs the shape {list(shape)}, not {got}")
