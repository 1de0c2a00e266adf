# SPDX-License-Identifier: Apache-2.0
"""Make a file appear at once or not at all: write beside it, then rename."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from secateur.errors import BadOutput


def check_free(path: Path, force: bool) -> None:
    """To be called before long work: nothing is at `path`, or a file that `force` lets us replace.

    Raises:
        BadOutput: it exists and `force` is not set, or it is something that must not be replaced: a folder, a link, a
            device; or what stands on the way to it is no folder.
    """
    if path.is_dir():
        raise BadOutput(f"output {path} is a folder; name a file")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BadOutput(f"output {path} is no plain file; choose another name")
    if path.exists() and not force:
        raise BadOutput(f"output {path} exists; add --force to replace it, or choose another name")
    way = next(folder for folder in path.absolute().parents if folder.exists())
    if not way.is_dir() or not os.access(way, os.W_OK):
        raise BadOutput(f"output {path} cannot be written: {way} is no folder that you may write to")


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of `text` as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """`write_with` all of `data`."""
    write_with(path, lambda partial: partial.write_bytes(data))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` make a file, which then becomes `path`; folders on the way are made, and leftovers are removed.

    Raises:
        BadOutput: `write` raised OSError, or there is no way to `path`; what was there before is still there.
    """
    partial = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(path):
            leftover.unlink(missing_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as problem:
        with suppress(OSError):  # where the folder could not be made, there is nothing to remove
            partial.unlink(missing_ok=True)
        raise BadOutput(f"output {path} cannot be written: {problem.strerror}") from None


def beside(path: Path) -> Path:
    """Where this process writes what is to become `path`."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def leftovers(path: Path) -> list[Path]:
    """What killed processes wrote `beside` it, which may be as large as what they were to become."""
    name = re.compile(re.escape(f".{path.name}.partial-") + r"(\d+)")
    found = [(other, name.fullmatch(other.name)) for other in path.parent.glob(".*.partial-*")]
    return [other for other, process in found if process and not _is_alive(int(process[1]))]


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
