# SPDX-License-Identifier: Apache-2.0
"""Files are written whole or not at all, and only regular files are replaced."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from secateur.bundle.atomic import check_file_free, write_text
from secateur.errors import BadOutput


def test_writes_and_replaces(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_text(path, "é")
    assert path.read_text(encoding="utf-8") == "é"
    write_text(path, "b")
    assert path.read_text() == "b" and [p.name for p in path.parent.iterdir()] == ["a.txt"]


def test_a_failed_write_leaves_no_files(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "b")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadOutput, match="cannot be written"):
        write_text(tmp_path / "folder", "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """The state of a calibration is written many times, and leftovers may be gigabytes."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    written = [f".a[1].txt.partial-{process}" for process in (gone.pid, os.getppid())]
    for name in (*written, f".b.txt.partial-{gone.pid}"):
        (tmp_path / name).write_text("half")
    write_text(tmp_path / "a[1].txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a[1].txt", written[1], f".b.txt.partial-{gone.pid}"}


def test_check_before_long_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    check_file_free(tmp_path / "none", False)
    check_file_free(tmp_path / "file", True)
    with pytest.raises(BadOutput, match="exists; add --force"):
        check_file_free(tmp_path / "file", False)
    with pytest.raises(BadOutput, match="is a folder; give the path of a file"):
        check_file_free(tmp_path, True)


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "link", "dangling"):
        with pytest.raises(BadOutput, match="is not a regular file"):
            check_file_free(tmp_path / name, force=True)
    with pytest.raises(BadOutput, match="is not a writable folder"):
        check_file_free(tmp_path / "real" / "below.json", force=True)
    assert (tmp_path / "real").read_text() == "kept"
