# SPDX-License-Identifier: Apache-2.0
"""cuda-python: imported when asked for, its error codes as exceptions. Only names that 12.6 and 13 share are used."""

from __future__ import annotations

from typing import Any

from secateur.errors import BackendMissing, SecateurError

INSTEAD = "or use `--backend ort`, which runs on the CPU"


def import_cudart() -> Any:
    """The module cuda.bindings.runtime.

    Raises:
        BackendMissing: cuda-python is not installed.
    """
    try:
        from cuda.bindings import runtime
    except (ImportError, OSError):
        raise BackendMissing(f"CUDA needs cuda-python; pip install 'cuda-python>=12.6', {INSTEAD}") from None
    return runtime


def check(result: tuple[Any, ...]) -> Any:
    """What a call of cuda-python gives behind its error code: nothing, or one value.

    Raises:
        SecateurError: with CUDA's name of the error.
    """
    error = result[0]
    if int(error) != 0:
        mend = "; use a smaller batch, a shorter text or fewer new tokens" if "MemoryAllocation" in error.name else ""
        raise SecateurError(f"CUDA failed with {error.name}{mend}")
    return result[1] if len(result) > 1 else None
