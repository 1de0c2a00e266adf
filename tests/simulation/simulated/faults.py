# SPDX-License-Identifier: Apache-2.0
"""What can go wrong: a fault of the program under test, or an error that the library reports."""

from __future__ import annotations


class Fault(AssertionError):
    """On a real device this would be undefined: a crash, or wrong numbers now and then."""


class Refused(Exception):
    """The CUDA runtime returns this error code; its name, such as "cudaErrorMemoryAllocation"."""
