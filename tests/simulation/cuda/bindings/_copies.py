# SPDX-License-Identifier: Apache-2.0
"""Copies and memsets. Asynchronous ones take device and pinned memory only, and are done when somebody waits."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from simulated import counters, device
from simulated.device import Stream, Work
from simulated.faults import Fault, Refused
from simulated.memory import Bytes, Range

from cuda.bindings._call import address_of, call, stream_of
from cuda.bindings._types import cudaMemcpyKind, cudaStream_t

PLACES = {
    cudaMemcpyKind.cudaMemcpyHostToHost: (False, False),
    cudaMemcpyKind.cudaMemcpyHostToDevice: (True, False),
    cudaMemcpyKind.cudaMemcpyDeviceToHost: (False, True),
    cudaMemcpyKind.cudaMemcpyDeviceToDevice: (True, True),
}
"""Whether destination and source are on the device."""
LARGEST_PITCH = (1 << 31) - 1
"""Bytes; memPitch of the device's properties."""


def _rows(address: Any, pitch: int, width: int, height: int, on_device: bool | None, what: str) -> Range:
    """The range of a pitched copy; `on_device` None takes what is there."""
    size = pitch * (height - 1) + width
    found = device.memory.find(address_of(address), size)
    if found is None:
        raise Fault(f"the {what} of an asynchronous copy is in no allocation (pageable memory?): {address:#x}")
    if on_device is not None and on_device != (found.block.kind == "device"):
        raise Fault(f"the {what} of a copy is {found.block.kind} memory, which its kind denies")
    return found


def _meet(dst: int, dpitch: int, src: int, spitch: int, width: int, height: int) -> bool:
    """Whether a row that is written overlaps one that is read; rows of the one may lie between those of the other."""
    rows = np.arange(height)
    distance = (dst + rows * dpitch)[:, None] - (src + rows * spitch)[None]
    return bool((abs(distance) < width).any())


def _copy(dst: Any, dpitch: int, src: Any, spitch: int, width: int, height: int, kind: Any, stream: Stream) -> None:
    if width == 0 or height == 0:
        return
    to_device, from_device = PLACES.get(cudaMemcpyKind(kind), (None, None))
    target = _rows(dst, dpitch, width, height, to_device, "target")
    source = _rows(src, spitch, width, height, from_device, "source")
    if target.overlaps(source) and _meet(dst, dpitch, src, spitch, width, height):
        raise Fault("target and source of a copy overlap")

    def do() -> None:
        counters.copies += 1
        into, out = target.bytes, source.bytes
        for row in range(height):
            into[row * dpitch : row * dpitch + width] = out[row * spitch : row * spitch + width]

    device.submit(stream, Work("a copy", do, (target, source)))


@call
def cudaMemcpyAsync(dst: int, src: int, count: int, kind: cudaMemcpyKind, stream: cudaStream_t) -> None:
    _copy(dst, count, src, count, count, 1, kind, stream_of(stream))


@call
def cudaMemcpy2DAsync(
    dst: int,
    dpitch: int,
    src: int,
    spitch: int,
    width: int,
    height: int,
    kind: cudaMemcpyKind,
    stream: cudaStream_t,
) -> None:
    if not width <= min(dpitch, spitch) <= max(dpitch, spitch) <= LARGEST_PITCH:
        raise Refused("cudaErrorInvalidPitchValue")
    _copy(dst, dpitch, src, spitch, width, height, kind, stream_of(stream))


@call
def cudaMemsetAsync(devPtr: int, value: int, count: int, stream: cudaStream_t) -> None:
    if count == 0:
        return
    target = device.memory.need(address_of(devPtr), count, "device", "the target of a memset")

    def do() -> None:
        target.bytes[:] = value

    device.submit(stream_of(stream), Work("a memset", do, (target,)))


@call
def cudaMemcpy(dst: int, src: int, count: int, kind: cudaMemcpyKind) -> None:
    """Waits for blocking streams; the host's side may be any memory of the process."""
    _wait()
    to_device, from_device = PLACES.get(cudaMemcpyKind(kind), (None, None))
    _memory(dst, count, to_device)[:] = _memory(src, count, from_device)
    counters.copies += 1


@call
def cudaMemset(devPtr: int, value: int, count: int) -> None:
    _wait()
    _memory(devPtr, count, True)[:] = value


def _wait() -> None:
    device.outside_capture()
    for stream in device.streams.values():
        if stream.blocking:
            stream.run()


def _memory(address: Any, size: int, on_device: bool | None) -> Bytes:
    found = device.memory.find(address_of(address), size)
    if on_device is not None and on_device != (found is not None and found.block.kind == "device"):
        raise Fault(f"{address:#x} is not where the kind of the copy says")
    if found is not None:
        return found.bytes
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
