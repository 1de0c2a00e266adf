# SPDX-License-Identifier: Apache-2.0
"""Console output of trtexec: version, outcome, enqueue time and errors.

&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b72] # trtexec --loadEngine=...       10.3 prints no [b..]
[11/20/2025-10:00:00] [I] Enqueue Time: min = 0.03 ms, max = ..., mean = ..., median = ..., percentile(90%) = ...
[11/20/2025-10:00:00] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute ...
&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b72] # trtexec --loadEngine=...
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from secateur.engines.results.files import LOG, read, refused
from secateur.engines.version import Version

LAST = 3
"""Number of lines shown of a failed run."""
_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_RESULT = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(\d+)\](?: \[b(\d+)\])?")
_LINE = re.compile(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[([A-Z])\] (.*)")
_ENQUEUE = "Enqueue Time: "
_MEDIAN = re.compile(r"median = (\S+) ms")
_BOUND = "may be bound by Enqueue Time"
_DEVICE = "Selected Device: "
_SKIPPED = "Device memory is insufficient"  # a skipped tactic, not a failure


@dataclass(frozen=True)
class Console:
    """One run of trtexec.

    device            name of the GPU, "" if it is not printed
    version           the build number is 0 if it is not printed, as in 10.3
    passed            None if no outcome is printed: the run was killed, or the text is truncated
    enqueue           median in milliseconds; None without a performance summary, as for a build
    enqueue_bound     trtexec warns that "Throughput may be bound by Enqueue Time rather than GPU Compute"
    errors            error lines, without those of skipped tactics
    last              last lines, for a run without error lines
    """

    device: str
    version: Version
    passed: bool | None
    enqueue: float | None
    enqueue_bound: bool
    errors: tuple[str, ...]
    last: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why the run failed, in the words of trtexec."""
        return " | ".join(self.errors[-LAST:] or self.last) or "it printed no reason"


def read_console(path: Path) -> Console:
    """Return the output of the last run in a file.

    Raises:
        BadMeasurement: the file is not a log of trtexec.
    """
    whole = _COLOR.sub("", read(path, LOG))
    text = whole[max(whole.rfind("&&&& RUNNING "), 0) :]
    results = _RESULT.findall(text)
    if not results:
        raise refused(path, LOG, "no line says '&&&& RUNNING TensorRT.trtexec'")
    ends = [word == "PASSED" for word, _, _ in results if word != "RUNNING"]
    lines = [(found[1], found[2].strip()) for found in map(_LINE.match, text.split("\n")) if found]
    messages = [line for _, line in lines]
    try:
        return Console(
            device=next((line[len(_DEVICE) :] for line in messages if line.startswith(_DEVICE)), ""),
            version=_version(results[0][1], results[0][2]),
            passed=ends[-1] if ends else None,
            enqueue=_enqueue(messages),
            enqueue_bound=any(level == "W" and _BOUND in line for level, line in lines),
            errors=tuple(line for level, line in lines if level == "E" and _SKIPPED not in line),
            last=tuple(line for line in messages if line)[-LAST:],
        )
    except ValueError as problem:
        raise refused(path, LOG, str(problem)) from None


def _version(digits: str, build: str) -> Version:
    """Parse the printed digits: "101600" and "72" -> 10.16.0.72."""
    number = int(digits)
    return Version(number // 10000, number // 100 % 100, number % 100, int(build or 0))


def _enqueue(messages: list[str]) -> float | None:
    """Return the median in milliseconds, None without a performance summary."""
    line = next((line for line in messages if line.startswith(_ENQUEUE)), None)
    if line is None:
        return None
    found = _MEDIAN.search(line)
    if found is None:
        raise ValueError("the line 'Enqueue Time' has no median")
    return float(found[1])
