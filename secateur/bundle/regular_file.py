# SPDX-License-Identifier: Apache-2.0
"""Read files that somebody else may have written: regular files only, up to a size.

A pipe would block, and a device such as /dev/zero never ends.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

LARGEST_JSON = 16 << 20
"""Bytes of a JSON file or of the header of a safetensors file: text of this size takes up to 1 GiB as objects."""
LARGEST_TOKENIZER = 64 << 20
"""Bytes of a tokenizer.json; the largest known ones have 35 MB."""
LARGEST_LIST = 1 << 30
"""Bytes of a list of samples or questions."""


class Unreadable(OSError):
    """A file that is not regular, or too large; `strerror` says which."""

    def __init__(self, reason: str) -> None:
        super().__init__(errno.EINVAL, reason)

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(path: str | os.PathLike[str], most: int | None = None) -> BinaryIO:
    """Open a regular file, or a link to one, for reading bytes.

    most  largest size in bytes; None: any

    Raises:
        Unreadable: it is a folder, pipe, device or socket, or larger than `most`.
        OSError, ValueError: it does not exist or cannot be opened, or its name cannot be a path.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise Unreadable("it is not a regular file, but a folder, pipe or device")
        if most is not None and status.st_size > most:
            raise Unreadable(f"it has {status.st_size} bytes, and the most is {most}")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_bytes(path: Path, most: int = LARGEST_JSON) -> bytes:
    """Return the contents of a regular file; arguments and errors are those of `open_regular`."""
    with open_regular(path, most) as file:
        return file.read(most)


def read_text(path: Path, most: int = LARGEST_JSON, encoding: str = "utf-8") -> str:
    """Return the text of a regular file.

    Raises:
        UnicodeDecodeError: it is not text in this encoding.
        OSError, ValueError: as for `open_regular`.
    """
    return read_bytes(path, most).decode(encoding)
