# SPDX-License-Identifier: Apache-2.0
"""Write a file or a folder atomically: write it beside the target, then rename it."""

from __future__ import annotations

import ctypes
import errno
import glob
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for leftover in _leftovers(path):
            leftover.unlink(missing_ok=True)
        with _claimed(path) as partial:
            try:
                write(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)
    except OSError as problem:
        raise BadOutput(f"output {path} cannot be written: {problem.strerror}") from None


@contextmanager
def _claimed(path: Path) -> Iterator[Path]:
    """Yield an unused temporary path beside `path`; until the block ends, a locked file shows that it is used.

    A lock, and not a process number, which differs between containers and may be reused.
    """
    while True:
        partial = path.with_name(f".{path.name}.partial-{secrets.token_hex(4)}")
        lock = _lock_of(partial)
        descriptor = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        try:
            _lock(descriptor)
        except BlockingIOError:  # another run takes it for a leftover, and removes it
            os.close(descriptor)
            continue
        except OSError:  # no locks here: others leave the temporary path alone
            pass
        if _is_at(descriptor, lock):
            break
        os.close(descriptor)
    try:
        yield partial
    finally:
        if not partial.exists() and not _aside(partial).exists():
            lock.unlink(missing_ok=True)
        os.close(descriptor)


def _leftovers(path: Path) -> Iterator[Path]:
    """Yield the temporary paths beside `path` that killed runs left, each locked while the caller handles it."""
    for lock in path.parent.glob(f"{glob.escape(f'.{path.name}.partial-')}*.lock"):
        partial = lock.with_suffix("")
        with suppress(OSError):  # in use, of another user, or handled by another run
            descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW)
            try:
                _lock(descriptor)
                if _is_at(descriptor, lock):
                    yield partial
                    if not partial.exists() and not _aside(partial).exists():
                        lock.unlink()
            finally:
                os.close(descriptor)


def _lock_of(partial: Path) -> Path:
    return Path(f"{partial}.lock")


def _aside(partial: Path) -> Path:
    """Return the path of the old folder while two folders are exchanged by renames."""
    return Path(f"{partial}.old")


def _lock(descriptor: int) -> None:
    """Lock an open file, without waiting.

    Raises:
        BlockingIOError: another process or thread has locked it.
        OSError: there are no locks here.
    """
    try:
        import fcntl
    except ImportError:
        raise OSError(errno.ENOTSUP, "this system has no file locks of Unix") from None
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether an open file is still at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


AT_FDCWD = -100
RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class OwnFolder:
    """Folders that a command writes, and that its `--force` may replace.

    name    what it is, for messages
    is_one  returns whether a folder is one; anything else is never replaced
    keep    subfolder that the next folder gets from the one it replaces; "" for none
    """

    name: str
    is_one: Callable[[Path], bool]
    keep: str = ""


@contextmanager
def atomic_folder(target: Path, force: bool, own: OwnFolder) -> Iterator[Path]:
    """Yield a new folder that becomes `target` when the block succeeds, and is removed when it fails.

    With `force`, an existing `target` is replaced at the end, in one step if the system can exchange two folders. A
    kill leaves the old or the new folder, at the latest after the next call, which also removes leftovers.

    Raises:
        BadOutput: see `check_folder_free`; or the folder cannot be written, for example because the disk is full.
    """
    check_folder_free(target, force, own)
    target = target.resolve()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _claimed(target) as partial:
            try:
                partial.mkdir()
                yield partial
                _sync(partial)
                check_folder_free(target, force, own)  # another run may have finished first
                if target.exists():
                    _replace(partial, target, own.keep)
                else:
                    partial.rename(target)
                _sync_folder(target.parent)
            finally:
                _settle(partial, target, own.keep)
    except OSError as problem:
        raise BadOutput(
            f"output {target} cannot be written: {problem.strerror or problem}; nothing was changed"
        ) from None


def check_folder_free(target: Path, force: bool, own: OwnFolder) -> None:
    """Check, before long work, that `target` can be written, and finish what a killed run left there.

    `force` allows to replace an empty folder, or one that `own` knows.

    Raises:
        BadOutput: it exists and `force` is not set, or it is not a folder that `force` may replace.
    """
    try:
        if target.is_symlink() or (target.exists() and not target.is_dir()):
            raise BadOutput(f"output {target} is not a folder; choose another --out")
        for leftover in _leftovers(target.resolve()):
            _settle(leftover, target.resolve(), own.keep)
        if not target.exists():
            return
        if not force:
            raise BadOutput(f"output {target} exists; add --force to replace it, or choose another --out")
        if any(target.iterdir()) and not own.is_one(target):
            raise BadOutput(
                f"output {target} is not {own.name} of Secateur, so --force does not replace it; choose another --out, "
                "or delete it"
            )
    except OSError as problem:
        raise BadOutput(f"output {target} cannot be used: {problem.strerror}; choose another --out") from None


def _replace(new: Path, old: Path, keep: str) -> None:
    """Exchange two folders and move the subfolder `keep` of the old one to the new one; undo both on failure."""
    _exchange(new, old)
    try:
        _move_missing(new / keep, old / keep)  # `new` is now the path of the old folder
    except BaseException:
        _exchange(new, old)
        raise


def _settle(partial: Path, target: Path, keep: str) -> None:
    """Restore what an exchange left that did not finish, then remove the temporary folders."""
    aside = _aside(partial)
    with suppress(OSError):  # nothing is removed that could not be rescued; the next run tries again
        if aside.exists() and not target.exists():
            aside.rename(target)
        for left in (aside, partial):
            if keep and target.is_dir():
                _move_missing(left / keep, target / keep)
            shutil.rmtree(left, ignore_errors=True)


def _move_missing(source: Path, target: Path) -> None:
    """Move a folder to `target`; if there is one already, move what it lacks."""
    if not source.is_dir() or source.is_symlink():
        return
    if not target.exists():
        source.rename(target)
        return
    for path in source.iterdir():
        if not (target / path.name).exists():
            path.rename(target / path.name)


def _exchange(new: Path, old: Path) -> None:
    """Exchange two folders, in one step if the system supports it (Linux), else by three renames."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is not None:
        if renameat2(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0:
            return
    aside = _aside(new)
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
