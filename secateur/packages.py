# SPDX-License-Identifier: Apache-2.0
"""Versions of the packages that are installed."""

from __future__ import annotations

from importlib import metadata


def version(package: str) -> str:
    """Of `package`, or of its build for GPUs, which bears another name; "not installed" if there is neither."""
    for name in (package, f"{package}-gpu"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "not installed"
