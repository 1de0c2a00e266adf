# SPDX-License-Identifier: Apache-2.0
"""Runs a job in a new process, so that all of its memory is freed and a crash ends only the job."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from secateur.bundle.atomic import write_text
from secateur.bundle.strict_json import read_json, to_json
from secateur.errors import BadEngine, SecateurError

JobType = TypeVar("JobType")
ResultType = TypeVar("ResultType")
JOB, RESULT, ERROR = "job.json", "result.json", "error.txt"


class JobFailed(Exception):
    """A job ended without a result.

    signal  number of the signal that ended its process, else 0
    """

    def __init__(self, text: str, signal: int = 0) -> None:
        super().__init__(text)
        self.signal = signal


def run_job(module: str, job: object, result: type[ResultType], log: Path, inherit: Sequence[int] = ()) -> ResultType:
    """Run a job with `python -m module`, whose main calls `serve`, and return its result.

    job, result  dataclasses that JSON can hold
    log          file for the output of the process
    inherit      file descriptors that stay open in the process

    Raises:
        JobFailed: the process ended without a result.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_text(folder / JOB, to_json(job))
        command = [sys.executable, "-m", module, scratch]
        with (
            log.open("wb") as output,
            subprocess.Popen(command, stdout=output, stderr=output, pass_fds=inherit) as process,
        ):
            try:
                code = process.wait()
            except BaseException:
                process.kill()
                raise
        if code == 0:
            return read_json(result, folder / RESULT, BadEngine)
        if (folder / ERROR).exists():
            raise JobFailed((folder / ERROR).read_text(encoding="utf-8"))
    said = log.read_text(errors="replace").strip().splitlines()
    ended = f"signal {-code}" if code < 0 else f"exit code {code}"
    raise JobFailed(f"its process ended with {ended}{': ' + said[-1] if said else ''}", max(0, -code))


def serve(job: type[JobType], work: Callable[[JobType], object], folder: Path) -> int:
    """Do the job in `folder` in this process, write its result or error there, and return the exit code."""
    try:
        write_text(folder / RESULT, to_json(work(read_json(job, folder / JOB, BadEngine))))
        return 0
    except MemoryError:
        error = "the host is out of memory"
    except SecateurError as problem:
        error = str(problem)
    except (OSError, RuntimeError, TypeError, ValueError) as problem:  # the bindings raise these too
        traceback.print_exc()
        error = " ".join(str(problem).split()) or type(problem).__name__
    write_text(folder / ERROR, error)
    return 1
