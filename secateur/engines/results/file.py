# SPDX-License-Identifier: Apache-2.0
"""The text of a file that trtexec wrote, and the error for a file that is not one."""

from __future__ import annotations

import re
from pathlib import Path

from secateur.errors import BadMeasurement

FIRST = {"startEnqMs": "--exportTimes", "count": "--exportProfile", "Layers": "--exportLayerInfo"}
"""The first key of a file tells which flag wrote it."""
LOG = "console output"
_KEY = re.compile(r'[\s\[{]*"(\w+)"')


def read(path: Path, flag: str) -> str:
    """The text; bytes that are not UTF-8 become escapes, line ends stay.

    flag   the flag of trtexec that writes such a file, or LOG

    Raises:
        BadMeasurement: it cannot be read, is empty, or another flag wrote it.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        raise BadMeasurement(f"{path} does not exist; {_mend(path, flag)}") from None
    except OSError as problem:
        raise BadMeasurement(f"{path} cannot be read: {problem.strerror}; name a file that trtexec wrote") from None
    if not text.strip():
        raise refused(path, flag, "it is empty")
    key = _KEY.match(text)
    other = FIRST.get(key[1], flag) if key else flag
    if other != flag:
        raise refused(path, flag, f"it is what {other} writes")
    return text


def refused(path: Path, flag: str, problem: str) -> BadMeasurement:
    """The error for a file that is not what `flag` writes."""
    what = "log" if flag == LOG else f"{flag} file"
    return BadMeasurement(f"{path} is not a {what} of trtexec: {problem}; {_mend(path, flag)}")


def _mend(path: Path, flag: str) -> str:
    return "keep what trtexec prints" if flag == LOG else f"run trtexec again with {flag}={path.name}"
