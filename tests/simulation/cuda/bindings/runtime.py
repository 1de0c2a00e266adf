# SPDX-License-Identifier: Apache-2.0
"""The part of cuda-python's runtime API that an inference runtime needs, on the simulated device.

Every function returns a tuple (error, ...), as cuda-python does; after an error the rest is None.
"""

from __future__ import annotations

from simulated import counters, device, settings
from simulated.faults import Refused

from cuda.bindings._call import address_of, call
from cuda.bindings._copies import cudaMemcpy, cudaMemcpy2DAsync, cudaMemcpyAsync, cudaMemset, cudaMemsetAsync
from cuda.bindings._streams import (
    cudaEventBlockingSync,
    cudaEventCreate,
    cudaEventCreateWithFlags,
    cudaEventDefault,
    cudaEventDestroy,
    cudaEventDisableTiming,
    cudaEventElapsedTime,
    cudaEventRecord,
    cudaEventSynchronize,
    cudaGraphDestroy,
    cudaGraphExecDestroy,
    cudaGraphInstantiate,
    cudaGraphLaunch,
    cudaStreamBeginCapture,
    cudaStreamCreate,
    cudaStreamCreateWithFlags,
    cudaStreamDefault,
    cudaStreamDestroy,
    cudaStreamEndCapture,
    cudaStreamIsCapturing,
    cudaStreamNonBlocking,
    cudaStreamSynchronize,
    cudaStreamWaitEvent,
)
from cuda.bindings._types import (
    cudaDeviceProp,
    cudaError_t,
    cudaEvent_t,
    cudaGraph_t,
    cudaGraphExec_t,
    cudaMemcpyKind,
    cudaStream_t,
    cudaStreamCaptureMode,
    cudaStreamCaptureStatus,
)

__all__ = [
    "cudaDeviceProp",
    "cudaDeviceSynchronize",
    "cudaDriverGetVersion",
    "cudaError_t",
    "cudaEventBlockingSync",
    "cudaEventCreate",
    "cudaEventCreateWithFlags",
    "cudaEventDefault",
    "cudaEventDestroy",
    "cudaEventDisableTiming",
    "cudaEventElapsedTime",
    "cudaEventRecord",
    "cudaEventSynchronize",
    "cudaEvent_t",
    "cudaFree",
    "cudaFreeHost",
    "cudaGetDevice",
    "cudaGetDeviceCount",
    "cudaGetDeviceProperties",
    "cudaGetErrorName",
    "cudaGetErrorString",
    "cudaGetLastError",
    "cudaGetLastError",
    "cudaGraphDestroy",
    "cudaGraphExecDestroy",
    "cudaGraphExec_t",
    "cudaGraphInstantiate",
    "cudaGraphLaunch",
    "cudaGraph_t",
    "cudaHostAlloc",
    "cudaHostAllocDefault",
    "cudaMalloc",
    "cudaMallocHost",
    "cudaMemcpy",
    "cudaMemcpy2DAsync",
    "cudaMemcpyAsync",
    "cudaMemcpyKind",
    "cudaMemset",
    "cudaMemsetAsync",
    "cudaRuntimeGetVersion",
    "cudaSetDevice",
    "cudaStreamBeginCapture",
    "cudaStreamCaptureMode",
    "cudaStreamCaptureStatus",
    "cudaStreamCreate",
    "cudaStreamCreateWithFlags",
    "cudaStreamDefault",
    "cudaStreamDestroy",
    "cudaStreamEndCapture",
    "cudaStreamIsCapturing",
    "cudaStreamNonBlocking",
    "cudaStreamSynchronize",
    "cudaStreamWaitEvent",
    "cudaStream_t",
]

cudaHostAllocDefault = 0


@call
def cudaGetDeviceCount() -> int:
    if settings.devices() == 0:
        raise Refused("cudaErrorNoDevice")
    return settings.devices()


@call
def cudaGetDevice() -> int:
    return 0


@call
def cudaSetDevice(device: int) -> None:
    if settings.devices() == 0:
        raise Refused("cudaErrorNoDevice")
    if not 0 <= device < settings.devices():
        raise Refused("cudaErrorInvalidDevice")


@call
def cudaGetDeviceProperties(device: int) -> cudaDeviceProp:
    if settings.devices() == 0:
        raise Refused("cudaErrorNoDevice")
    if not 0 <= device < settings.devices():
        raise Refused("cudaErrorInvalidDevice")
    return cudaDeviceProp()


@call
def cudaRuntimeGetVersion() -> int:
    return 12060


@call
def cudaDriverGetVersion() -> int:
    return 12060


def cudaGetLastError() -> tuple[cudaError_t]:
    """The last error, which is then forgotten."""
    last, device.last_error = device.last_error, "cudaSuccess"
    return (cudaError_t[last],)


@call
def cudaGetErrorName(error: cudaError_t) -> bytes:
    return cudaError_t(error).name.encode()


@call
def cudaGetErrorString(error: cudaError_t) -> bytes:
    return f"what {cudaError_t(error).name} means".encode()


@call
def cudaMalloc(size: int) -> int:
    device.outside_capture()
    counters.allocations += 1
    return device.memory.allocate(size, "device")


@call
def cudaFree(devPtr: int) -> None:
    device.free(address_of(devPtr), "device")


@call
def cudaMallocHost(size: int) -> int:
    device.outside_capture()
    return device.memory.allocate(size, "pinned")


@call
def cudaHostAlloc(size: int, flags: int) -> int:
    device.outside_capture()
    return device.memory.allocate(size, "pinned")


@call
def cudaFreeHost(ptr: int) -> None:
    device.free(address_of(ptr), "pinned")


@call
def cudaDeviceSynchronize() -> None:
    device.synchronize()
