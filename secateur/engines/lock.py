# SPDX-License-Identifier: Apache-2.0
"""File lock that admits one build per folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import BadOutput


@contextmanager
def build_lock(folder: Path) -> Iterator[int]:
    """Create the folder, remove partial files, and lock it against other builds until the block ends.

    Yields the file descriptor of the lock. A process that inherits it also holds the lock, until it exits.

    Raises:
        BadOutput: another build is running there, or the folder cannot be written.
    """
    import fcntl  # missing on Windows, where everything but a build works

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in folder.glob(".*.partial-*"):
                leftover.unlink(missing_ok=True)
            yield lock.fileno()
    except BlockingIOError:
        raise BadOutput(f"another build is running in {folder}; wait until it ends") from None
    except FileExistsError:
        raise BadOutput(f"output {folder} is not a folder; choose another one") from None
    except OSError as problem:
        raise BadOutput(f"{folder} cannot be written: {problem.strerror}; finished plans are kept") from None
