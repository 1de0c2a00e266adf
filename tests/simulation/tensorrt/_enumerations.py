# SPDX-License-Identifier: Apache-2.0
"""Enumerations with the values of the version that is simulated."""

from __future__ import annotations

from simulated import settings

from tensorrt._values import Enumeration


class DataType(Enumeration):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BOOL = 4
    UINT8 = 5
    FP8 = 6
    BF16 = 7
    INT64 = 8
    INT4 = 9


class TensorIOMode(Enumeration):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class TensorLocation(Enumeration):
    DEVICE = 0
    HOST = 1


class ProfilingVerbosity(Enumeration):
    LAYER_NAMES_ONLY = 0
    NONE = 1
    DETAILED = 2


class MemoryPoolType(Enumeration):
    WORKSPACE = 0
    DLA_MANAGED_SRAM = 1
    DLA_LOCAL_DRAM = 2
    DLA_GLOBAL_DRAM = 3
    TACTIC_DRAM = 4
    TACTIC_SHARED_MEMORY = 5


class ExecutionContextAllocationStrategy(Enumeration):
    STATIC = 0
    ON_PROFILE_CHANGE = 1
    USER_MANAGED = 2


class ErrorCode(Enumeration):
    """Of the parser."""

    SUCCESS = 0
    INTERNAL_ERROR = 1
    MEM_ALLOC_FAILED = 2
    MODEL_DESERIALIZE_FAILED = 3
    INVALID_VALUE = 4
    INVALID_GRAPH = 5
    INVALID_NODE = 6
    UNSUPPORTED_GRAPH = 7
    UNSUPPORTED_NODE = 8
    UNSUPPORTED_NODE_ATTR = 9
    UNSUPPORTED_NODE_INPUT = 10
    UNSUPPORTED_NODE_DATATYPE = 11


class ErrorCodeTRT(Enumeration):
    """Of an error recorder."""

    SUCCESS = 0
    UNSPECIFIED_ERROR = 1
    INTERNAL_ERROR = 2
    INVALID_ARGUMENT = 3
    INVALID_CONFIG = 4
    FAILED_ALLOCATION = 5
    FAILED_INITIALIZATION = 6
    FAILED_EXECUTION = 7
    FAILED_COMPUTATION = 8
    INVALID_STATE = 9
    UNSUPPORTED_STATE = 10


if settings.version() >= (11, 0, 0, 0):

    class NetworkDefinitionCreationFlag(Enumeration):
        STRONGLY_TYPED = 0

else:

    class NetworkDefinitionCreationFlag(Enumeration):  # type: ignore[no-redef]
        EXPLICIT_BATCH = 0
        STRONGLY_TYPED = 1


class BuilderFlag(Enumeration):
    TF32 = 6
