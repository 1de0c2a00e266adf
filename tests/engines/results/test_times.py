# SPDX-License-Identifier: Apache-2.0
"""--exportTimes of 10.3, 10.16 and 11.1, and invalid files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.engines.results.files import read_times
from secateur.errors import BadMeasurement
from secateur.profiling.results import spread

DATA = Path(__file__).parent.parent / "data"
VERSIONS = ("10.3", "10.16", "11.1")
FIELDS = "startEnqMs endEnqMs startH2dMs endH2dMs startComputeMs endComputeMs startD2hMs endD2hMs".split()
FIELDS += "h2dMs computeMs d2hMs latencyMs".split()


def test_a_file_of_10_3() -> None:
    times = read_times(DATA / "10.3" / "segment.times.json")
    assert times.compute == (0.873472, 0.862183, 0.856049, 0.872559)
    assert times.enqueue == pytest.approx((0.03389, 0.03389, 0.033, 0.034))


@pytest.mark.parametrize("version", VERSIONS)
def test_percentiles_equal_those_of_the_console(version: str) -> None:
    ours = spread(read_times(DATA / version / "segment.times.json").compute)
    text = (DATA / version / "segment.log").read_text()
    (line,) = [line for line in text.splitlines() if "GPU Compute Time: min" in line]
    theirs = {int(p): float(ms) for p, ms in re.findall(r"percentile\((\d+)%\) = (\S+) ms", line)}
    assert {50: ours.p50, 90: ours.p90, 95: ours.p95, 99: ours.p99} == theirs


@given(times=st.lists(st.floats(0, 1e6), min_size=1, max_size=20))
def test_every_query_is_read(times: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "times.json"
    path.write_text(json.dumps([dict.fromkeys(FIELDS, t) for t in times]))
    found = read_times(path)
    assert list(found.compute) == times and set(found.enqueue) == {0.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("[\n]\n", "it contains no query"),
        ("{}", "no list of queries"),
        ("hello", "truncated or not JSON"),
        ('[ { "startEnqMs" : 1, "endEnqMs" : 2', "truncated or not JSON"),
        ('[ { "startEnqMs" : 1, "endEnqMs" : 2, "computeMs" : "1", "latencyMs" : 1 } ]', "computeMs '1', not a time"),
        ('[ { "startEnqMs" : 1, "endEnqMs" : 2, "computeMs" : NaN, "latencyMs" : 1 } ]', "computeMs nan, not a time"),
        ('[ { "startEnqMs" : 1, "endEnqMs" : 2, "latencyMs" : 1 } ]', "computeMs None, not a time"),
        ("[ 7 ]", "computeMs None, not a time"),
        ('[\n  { "count" : 3 }\n]', "it was written by --exportProfile"),
        ('{"Layers": [], "Bindings": []}', "it was written by --exportLayerInfo"),
        ("[" * 100_000, "truncated or not JSON"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.times.json"
    path.write_text(text)
    with pytest.raises(BadMeasurement) as refused:
        read_times(path)
    message = str(refused.value)
    assert said in message and str(path) in message and "\n" not in message
    assert "run trtexec again with --exportTimes=a.times.json" in message


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    whole = (DATA / "11.1" / "segment.times.json").read_text().rstrip()
    path = tmp_path / "cut.json"
    for end in range(len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(BadMeasurement):
            read_times(path)


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadMeasurement, match="does not exist; run trtexec again with --exportTimes=no.json"):
        read_times(tmp_path / "no.json")
    with pytest.raises(BadMeasurement, match="cannot be read: Is a directory"):
        read_times(tmp_path)
