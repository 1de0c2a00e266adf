# SPDX-License-Identifier: Apache-2.0
"""Write a file or a folder atomically: write it beside the target, then rename it."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secateur.errors import BadOutput


def check_file_free(path: Path, force: bool) -> None:
    """Check, before long work, that a file can be written to `path`; `force` allows to replace a regular file.

    Raises:
        BadOutput: it exists and `force` is not set, it is a folder, a link or a device, or its folder is not writable.
    """
    if path.is_dir():
        raise BadOutput(f"output {path} is a folder; give the path of a file")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise BadOutput(f"output {path} is not a regular file; choose another name")
    if path.exists() and not force:
        raise BadOutput(f"output {path} exists; add --force to replace it, or choose another name")
    way = next(folder for folder in path.absolute().parents if folder.exists())
    if not way.is_dir() or not os.access(way, os.W_OK):
        raise BadOutput(f"output {path} cannot be written: {way} is not a writable folder")


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` atomically."""
    write_with(path, lambda partial: partial.write_bytes(data))


def write_with(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path, then rename that file to `path`; makes parents, removes leftovers.

    Raises:
        BadOutput: the file or a parent cannot be written; an existing file is unchanged.
    """
    partial = beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(path):
            leftover.unlink(missing_ok=True)
        write(partial)
        partial.replace(path)
    except OSError as problem:
        with suppress(OSError):  # the folder may not exist
            partial.unlink(missing_ok=True)
        raise BadOutput(f"output {path} cannot be written: {problem.strerror}") from None


def beside(path: Path) -> Path:
    """Return the temporary path beside `path` that this process writes to."""
    return path.with_name(f".{path.name}.partial-{os.getpid()}")


def leftovers(path: Path) -> list[Path]:
    """Return the temporary files or folders of `path` that killed processes left."""
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


AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def atomic_folder(target: Path, force: bool, marker: str, keep: str = "") -> Iterator[Path]:
    """Yield a new folder that becomes `target` when the block succeeds, and is removed when it fails.

    With `force`, an existing `target` is replaced in one step at the end, and its subfolder `keep` is moved to the new
    folder. Leftovers of killed runs are removed.

    Raises:
        BadOutput: see `check_folder_free`; or the folder cannot be written, for example because the disk is full.
    """
    check_folder_free(target, force, marker)
    target = target.resolve()
    partial = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(target):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        yield partial
        _sync(partial)
        check_folder_free(target, force, marker)  # another run may have finished first
        if target.exists():
            _exchange_keeping(partial, target, keep)
        else:
            partial.rename(target)
        _sync_folder(target.parent)
    except OSError as problem:
        raise BadOutput(
            f"output {target} cannot be written: {problem.strerror or problem}; nothing was changed"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_folder_free(target: Path, force: bool, marker: str) -> None:
    """Check, before long work, that `target` can be written.

    `force` allows to replace an empty folder, or one that contains the file `marker`.

    Raises:
        BadOutput: it exists and `force` is not set, or it is not a folder that `force` may replace.
    """
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise BadOutput(f"output {target} is not a folder; choose another --out")
        if not target.exists():
            return
        if not force:
            raise BadOutput(f"output {target} exists; add --force to replace it, or choose another --out")
        if any(target.iterdir()) and not (target / marker).is_file():
            raise BadOutput(f"output {target} has no {marker}, so --force does not replace it; choose another --out")
    except OSError as problem:
        raise BadOutput(f"output {target} cannot be used: {problem.strerror}; choose another --out") from None


def _exchange_keeping(new: Path, old: Path, keep: str) -> None:
    """Exchange two folders and move the subfolder `keep` of the old one to the new one; undo both on failure."""
    kept = bool(keep) and (old / keep).is_dir() and not (old / keep).is_symlink()
    if kept:
        (old / keep).rename(new / keep)
    try:
        _exchange(new, old)
    except BaseException:
        if kept:
            (new / keep).rename(old / keep)
        raise


def _exchange(new: Path, old: Path) -> None:
    """Exchange two folders, in one step if the system supports it (Linux), else by three renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
    aside = old.with_name(f".{old.name}.partial-{os.getpid()}.old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _sync(folder: Path) -> None:
    """Flush every file to disk, before the rename makes it visible."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
