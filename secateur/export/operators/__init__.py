# SPDX-License-Identifier: Apache-2.0
"""ONNX operators supported by TensorRT: a table per version, defined by its differences from the previous table."""

from __future__ import annotations

import sys

from secateur import plugins
from secateur.engines.version import Version
from secateur.errors import Unparsable
from secateur.export.operators.rules import Table


def _tables() -> tuple[Table, ...]:
    """Return the tables of all files trt_*.py, oldest first."""
    here = sys.modules[__name__]
    files = [name for name in plugins.names(here) if name.startswith("trt_")]
    tables: list[Table] = [plugins.load(here, name, "table").TABLE for name in files]
    return tuple(sorted(tables, key=lambda each: each.version))


TABLES = _tables()
OLDEST, NEWEST = TABLES[0].version, TABLES[-1].version


def table(version: Version) -> Table:
    """Return the newest table that is not newer than `version`.

    Raises:
        Unparsable: the version is older than the oldest table.
    """
    if version < OLDEST:
        raise Unparsable(f"TensorRT {version} is too old; graphs are made for {OLDEST} and newer")
    return [each for each in TABLES if each.version <= version][-1]


def caution(version: Version) -> str:
    """Return a warning for a version that is newer than the newest table; "" for others."""
    if version[:2] <= NEWEST[:2]:
        return ""
    return f"TensorRT {version} is newer than the newest table; it was checked as {NEWEST}"
