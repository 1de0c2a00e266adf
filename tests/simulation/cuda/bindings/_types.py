# SPDX-License-Identifier: Apache-2.0
"""Enumerations, handles and the device properties, named as cuda-python names them."""

from __future__ import annotations

import enum

from simulated import settings


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorInvalidValue = 1
    cudaErrorMemoryAllocation = 2
    cudaErrorInvalidPitchValue = 12
    cudaErrorInvalidMemcpyDirection = 21
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorInvalidDevice = 101
    cudaErrorInvalidResourceHandle = 400
    cudaErrorIllegalState = 401
    cudaErrorNotReady = 600
    cudaErrorStreamCaptureUnsupported = 900
    cudaErrorStreamCaptureInvalidated = 901
    cudaErrorCapturedEvent = 907


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToHost = 0
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2
    cudaMemcpyDeviceToDevice = 3
    cudaMemcpyDefault = 4


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeGlobal = 0
    cudaStreamCaptureModeThreadLocal = 1
    cudaStreamCaptureModeRelaxed = 2


class cudaStreamCaptureStatus(enum.IntEnum):
    cudaStreamCaptureStatusNone = 0
    cudaStreamCaptureStatusActive = 1
    cudaStreamCaptureStatusInvalidated = 2


class _Handle:
    """An opaque pointer; `int` gives its value."""

    __slots__ = ("_value",)

    def __init__(self, init_value: int = 0) -> None:
        self._value = init_value

    def __int__(self) -> int:
        return self._value


class cudaStream_t(_Handle):
    __slots__ = ()


class cudaEvent_t(_Handle):
    __slots__ = ()


class cudaGraph_t(_Handle):
    __slots__ = ()


class cudaGraphExec_t(_Handle):
    __slots__ = ()


class cudaDeviceProp:
    """Properties of the simulated device; `name` is bytes."""

    __slots__ = ("integrated", "major", "minor", "multiProcessorCount", "name", "totalGlobalMem")

    def __init__(self) -> None:
        self.name = settings.gpu().encode()
        self.major, self.minor = settings.capability()
        self.totalGlobalMem = settings.device_memory()
        self.integrated = 1
        self.multiProcessorCount = 16
