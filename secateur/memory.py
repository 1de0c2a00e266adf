# SPDX-License-Identifier: Apache-2.0
"""How much memory this machine has left."""

from __future__ import annotations

from pathlib import Path


def free_memory() -> int | None:
    """Bytes that can be had without swapping; None where the system does not say (it is not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
