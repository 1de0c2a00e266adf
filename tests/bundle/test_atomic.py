# SPDX-License-Identifier: Apache-2.0
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


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadOutput, match="cannot be written"):
        write_text(tmp_path / "file" / "a.txt", "b")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadOutput, match="cannot be written"):
        write_text(tmp_path / "folder", "b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    """It may be gigabytes: the state of a calibration is written again and again."""
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
    with pytest.raises(BadOutput, match="is a folder; name a file"):
        check_file_free(tmp_path, True)


def test_only_plain_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "real").write_text("kept")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("pipe", "link", "dangling"):
        with pytest.raises(BadOutput, match="is no plain file"):
            check_file_free(tmp_path / name, force=True)
    with pytest.raises(BadOutput, match="is no folder that you may write to"):
        check_file_free(tmp_path / "real" / "below.json", force=True)
    assert (tmp_path / "real").read_text() == "kept"
