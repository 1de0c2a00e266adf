# SPDX-License-Identifier: Apache-2.0
"""Plug-ins are files: the file name is the name the user types."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from secateur.errors import UnknownName


def names(package: ModuleType) -> list[str]:
    """Names of all plug-ins in `package`, without importing any of them."""
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name[0] != "_" and m.name != "base")


def load(package: ModuleType, name: str, kind: str) -> ModuleType:
    """Import the plug-in `name` of `package`.

    Raises:
        UnknownName: no file of that name; `kind` ("method", "backend", ...) names it in the message.
    """
    available = names(package)
    if name not in available:
        folder = package.__name__.replace(".", "/")
        hint = f"To add one, create {folder}/{name}.py." if name.isidentifier() and name != "base" else ""
        raise UnknownName(kind, name, available, hint)
    return importlib.import_module(f"{package.__name__}.{name}")
