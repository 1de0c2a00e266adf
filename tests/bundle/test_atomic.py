# SPDX-License-Identifier: Apache-2.0
"""Files and folders are written whole or not at all, also after a failure or a kill."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur.bundle import atomic
from secateur.bundle.atomic import atomic_folder, check_file_free, write_text
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


def write(target: Path, text: str, force: bool = False) -> None:
    with atomic_folder(target, force, "file") as folder:
        (folder / "file").write_text(text)


def test_a_folder_is_written(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "out", "one")
    assert (tmp_path / "deep" / "out" / "file").read_text() == "one"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["out"]


def test_an_existing_folder_is_refused_and_kept(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with pytest.raises(BadOutput, match="exists; add --force"):
        write(tmp_path / "out", "two")
    assert (tmp_path / "out" / "file").read_text() == "one"


def test_a_folder_that_appeared_meanwhile_is_kept(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match="exists; add --force"):
        with atomic_folder(tmp_path / "out", force=False, marker="file") as folder:
            (folder / "file").write_text("two")
            (tmp_path / "out").mkdir()  # by another process
            (tmp_path / "out" / "file").write_text("one")
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "two renames"])
def test_force_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: object())
    write(tmp_path / "out", "one")
    write(tmp_path / "out", "two", force=True)
    assert (tmp_path / "out" / "file").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_force_keeps_a_subfolder(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    (tmp_path / "out" / "engines").mkdir()
    (tmp_path / "out" / "engines" / "a.plan").write_text("plan")
    with atomic_folder(tmp_path / "out", force=True, marker="file", keep="engines") as folder:
        (folder / "file").write_text("two")
    assert (tmp_path / "out" / "file").read_text() == "two"
    assert (tmp_path / "out" / "engines" / "a.plan").read_text() == "plan"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("fails", ["rename", "_exchange"])
def test_a_subfolder_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    write(tmp_path / "out", "one")
    (tmp_path / "out" / "engines").mkdir()
    (tmp_path / "out" / "engines" / "a.plan").write_text("plan")
    rename = Path.rename

    def refuse(self: Path, target: Path) -> Path:
        if self.name == "engines" and self.parent.name == "out":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    if fails == "rename":
        monkeypatch.setattr(Path, "rename", refuse)
    else:
        monkeypatch.setattr(atomic, "_exchange", lambda new, old: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(BadOutput, match="nothing was changed"):
        with atomic_folder(tmp_path / "out", force=True, marker="file", keep="engines") as folder:
            (folder / "file").write_text("two")
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert (tmp_path / "out" / "engines" / "a.plan").read_text() == "plan"


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out", force=True, marker="file") as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with pytest.raises(BadOutput, match="No space left on device; nothing was changed"):
        with atomic_folder(tmp_path / "out", force=True, marker="file"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "out" / "file").read_text() == "one"


def test_force_replaces_only_folders_with_the_marker(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "precious").write_text("one")
    with pytest.raises(BadOutput, match="has no file, so --force does not replace it"):
        write(tmp_path / "photos", "two", force=True)
    assert (tmp_path / "photos" / "precious").read_text() == "one"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", "two", force=True)


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(BadOutput, match="name too long|File name too long"):
        write(tmp_path / ("a" * 300), "two")


@pytest.mark.parametrize("kind", ["file", "link"])
def test_only_folders_are_replaced(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "out").write_text("precious")
    else:
        (tmp_path / "out").symlink_to(tmp_path)
    with pytest.raises(BadOutput, match="is not a folder"):
        write(tmp_path / "out", "two", force=True)


def test_a_kill_leaves_the_old_folder_and_the_next_run_removes_leftovers(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    code = (
        "import sys, time; from pathlib import Path; from secateur.bundle.atomic import atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), True, 'file') as folder:\n"
        "    (folder / 'file').write_text('half'); print('writing', flush=True); time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"writing\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert (tmp_path / "out" / "file").read_text() == "one"
    time.sleep(0.1)
    write(tmp_path / "out", "two", force=True)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
