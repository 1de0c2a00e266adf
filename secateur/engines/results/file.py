# SPDX-License-Identifier: Apache-2.0
"""Reading of a file that trtexec wrote, and the error for a file of another kind."""

from __future__ import annotations

import re
from pathlib import Path

from secateur.errors import BadMeasurement

FIRST = {"startEnqMs": "--exportTimes", "count": "--exportProfile", "Layers": "--exportLayerInfo"}
"""First key in a file -> the flag that wrote it."""
LOG = "console output"
_KEY = re.compile(r'[\s\[{]*"(\w+)"')


def read(path: Path, flag: str) -> str:
    """Read the text of a file. Bytes that are not UTF-8 become escapes; line ends stay.

    flag   trtexec flag that writes such a file, or LOG

    Raises:
        BadMeasurement: it cannot be read, is empty, or another flag wrote it.
    """
    try:
        text = path.read_bytes().decode("utf-8", errors="backslashreplace")
    except FileNotFoundError:
        raise BadMeasurement(f"{path} does not exist; {_mend(path, flag)}") from None
    except OSError as problem:
        raise BadMeasurement(f"{path} cannot be read: {problem.strerror}; give a file that trtexec wrote") from None
    if not text.strip():
        raise refused(path, flag, "it is empty")
    key = _KEY.match(text)
    other = FIRST.get(key[1], flag) if key else flag
    if other != flag:
        raise refused(path, flag, f"it was written by {other}")
    return text


def refused(path: Path, flag: str, problem: str) -> BadMeasurement:
    """Return the error for a file that `flag` did not write."""
    what = "log" if flag == LOG else f"{flag} file"
    return BadMeasurement(f"{path} is not a {what} of trtexec: {problem}; {_mend(path, flag)}")


def _mend(path: Path, flag: str) -> str:
    return "keep what trtexec prints" if flag == LOG else f"run trtexec again with {flag}={path.name}"
