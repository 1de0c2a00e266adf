# SPDX-License-Identifier: Apache-2.0
"""What a test can choose, by environment variables, so that it holds in other processes too."""

from __future__ import annotations

import os


def version() -> tuple[int, int, int, int]:
    """SIMULATED_TENSORRT_VERSION, all four numbers."""
    numbers = [int(part) for part in os.environ.get("SIMULATED_TENSORRT_VERSION", "10.3.0.30").split(".")]
    return (numbers[0], numbers[1], numbers[2], numbers[3])


def rtx_version() -> str:
    """SIMULATED_RTX_VERSION of TensorRT for RTX."""
    return os.environ.get("SIMULATED_RTX_VERSION", "1.7.1.116")


def gpu() -> str:
    """SIMULATED_GPU: name of the device."""
    return os.environ.get("SIMULATED_GPU", "Orin")


def capability() -> tuple[int, int]:
    """SIMULATED_SM: compute capability."""
    major, minor = os.environ.get("SIMULATED_SM", "8.7").split(".")
    return int(major), int(minor)


def devices() -> int:
    """SIMULATED_DEVICES: how many there are."""
    return int(os.environ.get("SIMULATED_DEVICES", "1"))


def device_memory() -> int:
    """SIMULATED_DEVICE_MEMORY in bytes."""
    return int(os.environ.get("SIMULATED_DEVICE_MEMORY", str(8 << 30)))


def unsupported() -> frozenset[str]:
    """SIMULATED_UNSUPPORTED: operators that the parser refuses, "TopK,Gather"."""
    return frozenset(filter(None, os.environ.get("SIMULATED_UNSUPPORTED", "").split(",")))


def out_of_memory(path: str) -> bool:
    """SIMULATED_OUT_OF_MEMORY: part of the path of an ONNX file whose build runs out of memory."""
    part = os.environ.get("SIMULATED_OUT_OF_MEMORY", "")
    return bool(part) and part in path


def clamps_empty() -> bool:
    """SIMULATED_CLAMPS_EMPTY=1: a build turns the least size 0 of a profile into 1, without a word."""
    return os.environ.get("SIMULATED_CLAMPS_EMPTY") == "1"


def refuses_empty() -> bool:
    """SIMULATED_REFUSES_EMPTY=1: no profile may contain an empty tensor."""
    return os.environ.get("SIMULATED_REFUSES_EMPTY") == "1"
