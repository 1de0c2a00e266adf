# SPDX-License-Identifier: Apache-2.0
"""How a function of the runtime reports, and what its pointers and streams are."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from simulated import device
from simulated.device import Stream
from simulated.faults import Refused

from cuda.bindings._types import cudaError_t


def call(function: Callable[..., Any]) -> Callable[..., tuple[Any, ...]]:
    """`function` gives its result, or None if it has none, and raises Refused for an error code."""
    results = 0 if inspect.signature(function).return_annotation == "None" else 1

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> tuple[Any, ...]:
        try:
            result = function(*arguments, **named)
        except Refused as refused:
            device.last_error = str(refused)
            return (cudaError_t[str(refused)], *[None] * results)
        return (cudaError_t.cudaSuccess, result) if results else (cudaError_t.cudaSuccess,)

    return called


def address_of(pointer: Any) -> int:
    if type(pointer) is not int:
        raise TypeError(f"an address must be an int, not {type(pointer).__name__}")
    return pointer


def stream_of(stream: Any) -> Stream:
    return device.stream(int(stream))
