# SPDX-License-Identifier: Apache-2.0
"""What trtexec prints: version, whether it passed, the performance summary, warnings and errors.

&&&& RUNNING TensorRT.trtexec [TensorRT v101600] [b72] # trtexec --loadEngine=...       10.3 prints no [b..]
[11/20/2025-10:00:00] [I] Throughput: 1155.36 qps
[11/20/2025-10:00:00] [I] GPU Compute Time: min = 0.85 ms, max = ..., mean = ..., median = ..., percentile(90%) = ...
[11/20/2025-10:00:00] [W] * Throughput may be bound by Enqueue Time rather than GPU Compute ...
&&&& PASSED TensorRT.trtexec [TensorRT v101600] [b72] # trtexec --loadEngine=...
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from secateur.engines.results.file import LOG, read, refused
from secateur.engines.version import Version

LAST = 3
"""Lines that are shown of a failed run."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RESULT = re.compile(r"&&&& (RUNNING|PASSED|FAILED) TensorRT\.trtexec \[TensorRT v(\d+)\](?: \[b(\d+)\])?")
_LINE = re.compile(r"\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\] \[([A-Z])\] (.*)")
_NUMBER = r"([-+.\w]+)"
_FIELD = re.compile(rf"(\w+|percentile\([\d.]+%\)) = {_NUMBER} ms")
_THROUGHPUT = re.compile(rf"Throughput: {_NUMBER} qps")
_AVERAGE = re.compile(
    rf"Average on (\d+) runs - GPU latency: {_NUMBER} ms - Host latency: {_NUMBER} ms \(enqueue {_NUMBER} ms\)"
)
_VARIATION = re.compile(rf"GPU compute time is unstable, with coefficient of variance = {_NUMBER}%")
_DEVICE = "Selected Device: "
_SKIPPED = "Device memory is insufficient"  # a tactic was skipped, nothing failed


@dataclass(frozen=True)
class Statistics:
    """A line of the summary, in milliseconds; `percentiles` by per cent, such as 99.0."""

    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[float, float]


@dataclass(frozen=True)
class Average:
    """A line of the trace: means over `runs` queries, in milliseconds."""

    runs: int
    compute: float
    latency: float
    enqueue: float


@dataclass(frozen=True)
class Console:
    """One run of trtexec.

    device            name of the GPU, "" where it is not said
    version           its build number is 0 where trtexec does not print one, as 10.3 does
    passed            None where it ended without a word: it was killed, or the text is cut off
    throughput        queries a second; None, as all below, where there is no performance summary
    enqueue_bound     warned that "Throughput may be bound by Enqueue Time"
    variation         per cent, where it warned that "GPU compute time is unstable"
    errors            error lines, those of skipped tactics left out
    last              last lines, for a run that said nothing of an error
    """

    device: str
    version: Version
    passed: bool | None
    throughput: float | None
    latency: Statistics | None
    enqueue: Statistics | None
    h2d: Statistics | None
    compute: Statistics | None
    d2h: Statistics | None
    trace: tuple[Average, ...]
    enqueue_bound: bool
    variation: float | None
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    last: tuple[str, ...]

    @property
    def reason(self) -> str:
        """Why it failed, in its own words."""
        return " | ".join(self.errors[-LAST:] or self.last) or "no word of it"


def read_console(path: Path) -> Console:
    """The output of the last run in a file.

    Raises:
        BadMeasurement: it is not trtexec's.
    """
    whole = _COLOUR.sub("", read(path, LOG))
    text = whole[max(whole.rfind("&&&& RUNNING "), 0) :]
    results = _RESULT.findall(text)
    if not results:
        raise refused(path, LOG, "no line says '&&&& RUNNING TensorRT.trtexec'")
    ends = [word == "PASSED" for word, _, _ in results if word != "RUNNING"]
    lines = [(found[1], found[2].strip()) for found in map(_LINE.match, text.split("\n")) if found]
    said = [line for _, line in lines]
    warnings = tuple(line for level, line in lines if level == "W")
    try:
        return Console(
            device=next((line[len(_DEVICE) :] for line in said if line.startswith(_DEVICE)), ""),
            version=_version(results[0][1], results[0][2]),
            passed=ends[-1] if ends else None,
            throughput=next((float(f[1]) for f in map(_THROUGHPUT.match, said) if f), None),
            latency=_statistics(said, "Latency"),
            enqueue=_statistics(said, "Enqueue Time"),
            h2d=_statistics(said, "H2D Latency"),
            compute=_statistics(said, "GPU Compute Time"),
            d2h=_statistics(said, "D2H Latency"),
            trace=tuple(
                Average(int(f[1]), float(f[2]), float(f[3]), float(f[4])) for f in map(_AVERAGE.match, said) if f
            ),
            enqueue_bound=any("may be bound by Enqueue Time" in line for line in warnings),
            variation=next((float(f[1]) for f in map(_VARIATION.search, warnings) if f), None),
            warnings=warnings,
            errors=tuple(line for level, line in lines if level == "E" and _SKIPPED not in line),
            last=tuple(line for line in said if line)[-LAST:],
        )
    except ValueError as problem:
        raise refused(path, LOG, str(problem)) from None


def _version(digits: str, build: str) -> Version:
    """ "101600" and "72" -> 10.16.0.72"""
    number = int(digits)
    return Version(number // 10000, number // 100 % 100, number % 100, int(build or 0))


def _statistics(said: list[str], name: str) -> Statistics | None:
    line = next((line for line in said if line.startswith(f"{name}: min = ")), None)
    if line is None:
        return None
    fields = {key: float(value) for key, value in _FIELD.findall(line)}
    try:
        plain = {key: fields.pop(key) for key in ("min", "max", "mean", "median")}
    except KeyError as missing:
        raise ValueError(f"the line '{name}' has no {missing}") from None
    return Statistics(**plain, percentiles={float(key[len("percentile(") : -2]): ms for key, ms in fields.items()})
