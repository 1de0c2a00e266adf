# SPDX-License-Identifier: Apache-2.0
"""Which ONNX operators TensorRT takes: a table for each version that differs, said as the one before and more."""

from __future__ import annotations

import sys

from secateur import plugins
from secateur.engines.version import Version
from secateur.errors import Unparsable
from secateur.export.operators.rules import Table


def _tables() -> tuple[Table, ...]:
    """Those of all files trt_*.py, oldest first."""
    here = sys.modules[__name__]
    files = [name for name in plugins.names(here) if name.startswith("trt_")]
    tables: list[Table] = [plugins.load(here, name, "table").TABLE for name in files]
    return tuple(sorted(tables, key=lambda each: each.version))


TABLES = _tables()
OLDEST, NEWEST = TABLES[0].version, TABLES[-1].version


def table(version: Version) -> Table:
    """The newest table that is not newer than `version`.

    Raises:
        Unparsable: there is none.
    """
    if version < OLDEST:
        raise Unparsable(f"TensorRT {version} is too old; graphs are made for {OLDEST} and newer")
    return [each for each in TABLES if each.version <= version][-1]


def caution(version: Version) -> str:
    """What to add to an answer for a version that is newer than the newest table; "" for others."""
    if version[:2] <= NEWEST[:2]:
        return ""
    return f"TensorRT {version} is newer than the newest table; it was judged as {NEWEST}"
