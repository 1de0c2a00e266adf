# SPDX-License-Identifier: Apache-2.0
"""Make a folder appear at once or not at all: write beside it, then rename."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import BadOutput
from secateur.files import beside, leftovers

AT_FDCWD = -100
RENAME_EXCHANGE = 2


@contextmanager
def atomic_folder(target: Path, force: bool, marker: str, keep: str = "") -> Iterator[Path]:
    """A fresh folder beside `target` that takes its place when the block ends well, and is removed when it does not.

    An existing `target` is kept to the last moment and, with `force`, exchanged in one step; its subfolder `keep` is
    moved into the new one. What killed runs left behind is cleared away.

    Raises:
        BadOutput: see `check_free`; or the disk is full, or it cannot be written there.
    """
    check_free(target, force, marker)
    target = target.resolve()
    partial = beside(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for leftover in leftovers(target):
            shutil.rmtree(leftover, ignore_errors=True)
        partial.mkdir()
        yield partial
        _sync(partial)
        check_free(target, force, marker)  # another run may have been quicker
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


def check_free(target: Path, force: bool, marker: str) -> None:
    """To be called before long work: `target` can be written.

    `force` replaces only what this program made: an empty folder, or one that holds the file `marker`.

    Raises:
        BadOutput: it exists and `force` is not set, or it is something that `force` must not replace.
    """
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise BadOutput(f"output {target} is no folder; choose another --out")
        if not target.exists():
            return
        if not force:
            raise BadOutput(f"output {target} exists; add --force to replace it, or choose another --out")
        if any(target.iterdir()) and not (target / marker).is_file():
            raise BadOutput(f"output {target} has no {marker}, so --force does not replace it; choose another --out")
    except OSError as problem:
        raise BadOutput(f"output {target} cannot be used: {problem.strerror}; choose another --out") from None


def _exchange_keeping(new: Path, old: Path, keep: str) -> None:
    """`_exchange`, with the subfolder `keep` of the old one in the new one; if that fails, all is as before."""
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
    """Swap two folders; in one step where the system can (Linux), else with a moment in which `old` stands aside."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
    aside = old.with_name(f".{old.name}.partial-{os.getpid()}.old")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _sync(folder: Path) -> None:
    """Have every file on the disk before the rename makes it visible."""
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
