# SPDX-License-Identifier: Apache-2.0
"""One build in a folder at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secateur.errors import BadOutput


@contextmanager
def alone(folder: Path) -> Iterator[int]:
    """Make the folder, and keep other builds out of it for as long as the block runs.

    Gives the lock's file descriptor. A process that inherits it holds the lock too, until it ends.

    Raises:
        BadOutput: another build is at work there, or the folder cannot be written.
    """
    import fcntl  # Windows lacks it, and can do everything else

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in folder.glob(".*.partial-*"):
                leftover.unlink(missing_ok=True)
            yield lock.fileno()
    except BlockingIOError:
        raise BadOutput(f"another build is at work in {folder}; wait for it") from None
    except FileExistsError:
        raise BadOutput(f"output {folder} is no folder; name another one") from None
    except OSError as problem:
        raise BadOutput(f"{folder} cannot be written: {problem.strerror}; finished plans are kept") from None
