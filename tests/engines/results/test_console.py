# SPDX-License-Identifier: Apache-2.0
"""Console output of trtexec 10.3, 10.16 and 11.1: passed, failed, killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.engines.results.console import read_console
from secateur.engines.version import Version
from secateur.errors import BadMeasurement

DATA = Path(__file__).parent.parent / "data"


def test_a_run_of_10_3() -> None:
    found = read_console(DATA / "10.3" / "segment.log")
    assert found.passed is True and found.version == Version(10, 3) and found.device == "Orin"
    assert found.enqueue == 0.0338898 and not found.enqueue_bound and found.errors == ()


def test_a_warning_of_10_16_about_the_enqueue_time() -> None:
    found = read_console(DATA / "10.16" / "segment.log")
    assert found.version == Version(10, 16, 0, 72) and found.device == "NVIDIA H200"
    assert found.enqueue_bound and found.enqueue == 0.702


def test_a_warning_of_11_1_about_flags_without_effect() -> None:
    found = read_console(DATA / "11.1" / "segment.log")
    assert found.passed is True and found.version == Version(11, 1, 0, 24)
    assert not found.enqueue_bound and found.errors == ()


def test_a_failed_build_has_its_reason() -> None:
    found = read_console(DATA / "10.3" / "failed.log")
    assert found.passed is False and found.enqueue is None
    assert not any("insufficient to use tactic" in line for line in found.errors)  # a skipped tactic is not an error
    assert found.reason.startswith("Error[2]: ") and found.reason.endswith("Building engine failed")


def test_a_killed_run_has_no_result(tmp_path: Path) -> None:
    whole = (DATA / "10.16" / "segment.log").read_text()
    path = tmp_path / "killed.log"
    path.write_text(whole[: whole.index("=== Trace details")])
    found = read_console(path)
    assert found.passed is None and found.enqueue is None
    assert "Timing trace has 4 queries" in found.reason


def test_the_last_run_of_a_log_counts(tmp_path: Path) -> None:
    path = tmp_path / "twice.log"
    path.write_text((DATA / "10.3" / "failed.log").read_text() + (DATA / "11.1" / "segment.log").read_text())
    found = read_console(path)
    assert found.passed is True and found.version.major == 11 and found.errors == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("bash: trtexec: command not found\n", "no line says '&&&& RUNNING TensorRT.trtexec'"),
        ("&&&& RUNNING TensorRT.trtexec [TensorRT v?] # trtexec", "no line says"),
        ('[\n  { "count" : 3 }\n]', "it was written by --exportProfile"),
    ],
)
def test_other_files_are_refused(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text(text)
    with pytest.raises(BadMeasurement) as refused:
        read_console(path)
    assert said in str(refused.value) and str(path) in str(refused.value) and "\n" not in str(refused.value)


def test_a_damaged_summary(tmp_path: Path) -> None:
    whole = (DATA / "10.3" / "segment.log").read_text()
    path = tmp_path / "a.log"
    for old, new, said in (("median = ", "middle = ", "has no median"), ("= 0.0338898", "= 0.0x", "could not convert")):
        path.write_text(whole.replace(old, new))
        with pytest.raises(BadMeasurement, match=said):
            read_console(path)
