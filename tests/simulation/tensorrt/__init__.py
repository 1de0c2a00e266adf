# SPDX-License-Identifier: Apache-2.0
"""TensorRT's Python bindings on the simulated device: engines are ONNX models, run by ONNX Runtime on the CPU.

Only what Secateur may use is here, with the real names and signatures (a test compares them), so anything else is an
AttributeError. What the real library checks is checked here, and some more: see `simulated`.
"""

from __future__ import annotations

from simulated import settings

from tensorrt._builder import Builder
from tensorrt._config import IBuilderConfig, IOptimizationProfile, ITimingCache
from tensorrt._context import IExecutionContext
from tensorrt._engine import ICudaEngine, Runtime
from tensorrt._enumerations import (
    BuilderFlag,
    DataType,
    ErrorCode,
    ErrorCodeTRT,
    ExecutionContextAllocationStrategy,
    MemoryPoolType,
    NetworkDefinitionCreationFlag,
    ProfilingVerbosity,
    TensorIOMode,
    TensorLocation,
)
from tensorrt._logging import IErrorRecorder, ILogger, Logger
from tensorrt._network import INetworkDefinition, ITensor, OnnxParser, ParserError
from tensorrt._values import Dims, IHostMemory

__version__ = ".".join(str(part) for part in settings.version())

__all__ = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "Dims",
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
    "ITensor",
    "ITimingCache",
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
