# SPDX-License-Identifier: Apache-2.0
"""Free memory and description of this machine."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from secateur.version import __version__


def free_memory() -> int | None:
    """Return the bytes available without swapping; None if the system does not report them (not Linux)."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def package_version(package: str) -> str:
    """Return the version of `package` or of its GPU build, a package of another name; "not installed" if neither is."""
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"


def machine(device: Mapping[str, str]) -> dict[str, str]:
    """Return the description of the measuring machine; `device` is the backend's, see Pipeline.describe."""
    return {
        "cpu": _cpu(),
        "cores": str(os.cpu_count()),
        **device,
        "python": platform.python_version(),
        "onnxruntime": package_version("onnxruntime"),
        "secateur": __version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()
