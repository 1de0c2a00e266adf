# SPDX-License-Identifier: Apache-2.0
"""Names in a manifest that become names of files, words of commands and keys of logs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from secateur.errors import BadBundle

LONGEST_NAME = 128
"""Bytes of the name of a graph: plans and logs have it with a suffix, and file systems allow 255."""
LONGEST_SCHEDULE = 96
"""Bytes of the name of a schedule, which the names of its gates begin with."""
LONGEST_TENSOR = 1024
LONGEST_PATH = 1024
TENSOR = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
MEND = "export the bundle again"


def is_plain(name: str, longest: int, marks: str = "._-") -> bool:
    """Return whether a name is of letters, digits and `marks`, of which only "_" may be first, in `longest` bytes."""
    plain = all(c.isalnum() or c in marks for c in name) and name[:1] not in ("", *marks.replace("_", ""))
    return plain and len(name.encode("utf-8", "replace")) <= longest


def check_names(kind: str, names: Iterable[str]) -> None:
    """Check names of graphs or schedules, each of which becomes the name of a file.

    Raises:
        BadBundle: a name is not plain and short, or two would be the same file where case does not matter.
    """
    seen: dict[str, str] = {}
    for name in names:
        if not is_plain(name, LONGEST_NAME, "._-@"):  # the gates of a further image size: NAME@WIDTHxHEIGHT.0
            raise BadBundle(
                f"the manifest has a {kind} named {name[:LONGEST_NAME]!r}; a name has up to {LONGEST_NAME} bytes of "
                f"letters, digits, '_', '.', '-' and '@', and begins with a letter, a digit or '_'; {MEND}"
            )
        other = seen.setdefault(unicodedata.normalize("NFKC", name).casefold(), name)
        if other != name:
            raise BadBundle(f"the manifest has the {kind}s {other!r} and {name!r}, which would be one file; {MEND}")


def check_tensor(graph: str, name: str) -> None:
    """Check the name of a tensor or a weight, which is a word of trtexec's arguments.

    Raises:
        BadBundle: it is not plain, or too long.
    """
    if len(name) > LONGEST_TENSOR or not TENSOR.fullmatch(name):
        raise BadBundle(
            f"graph '{graph}' has a tensor named {name[:LONGEST_NAME]!r}; a name has up to {LONGEST_TENSOR} of A-Z, "
            f"a-z, 0-9, '_', '.', '+' and '-', without '.', '+' or '-' at the start; {MEND}"
        )


def check_file(name: str) -> None:
    """Check the name of a file, which must be a path inside the folder of the bundle.

    Raises:
        BadBundle: it could lead out of the folder, or it is not printable.
    """
    parts = name.split("/")
    unsafe = (
        "\\" in name or ":" in name or not name.isprintable() or len(name.encode("utf-8", "replace")) > LONGEST_PATH
    )
    if unsafe or {"", ".", ".."}.intersection(parts):
        raise BadBundle(f"the manifest has the path {name[:LONGEST_NAME]!r} outside of the bundle; {MEND}")
