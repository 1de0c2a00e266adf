# SPDX-License-Identifier: Apache-2.0
"""The Python bindings of TensorRT for RTX on the simulated device: those of the simulated TensorRT, and what differs.

A build needs no device. A plan is for compute capabilities. The runtime compiles kernels for each new shape and keeps
them in a runtime cache. There is no timing cache: the real one does nothing.
"""

from __future__ import annotations

from simulated import settings
from tensorrt import (
    DataType,
    Dims,
    ErrorCode,
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    IErrorRecorder,
    IHostMemory,
    ILogger,
    INetworkDefinition,
    IOptimizationProfile,
    ITensor,
    Logger,
    MemoryPoolType,
    OnnxParser,
    ParserError,
    ProfilingVerbosity,
    TensorIOMode,
    TensorLocation,
)

from tensorrt_rtx._build import Builder, BuilderFlag, ComputeCapability, IBuilderConfig, NetworkDefinitionCreationFlag
from tensorrt_rtx._run import (
    DynamicShapesKernelSpecializationStrategy,
    ICudaEngine,
    IExecutionContext,
    IRuntimeCache,
    IRuntimeConfig,
    Runtime,
)

__version__ = settings.rtx_version()

__all__ = [
    "Builder",
    "BuilderFlag",
    "ComputeCapability",
    "DataType",
    "Dims",
    "DynamicShapesKernelSpecializationStrategy",
    "ErrorCode",
    "ErrorCodeTRT",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IErrorRecorder",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IRuntimeCache",
    "IRuntimeConfig",
    "ITensor",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
    "TensorLocation",
]
