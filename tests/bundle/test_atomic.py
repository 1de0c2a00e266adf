# SPDX-License-Identifier: Apache-2.0
"""Files and folders are written whole or not at all, also after a failure or a kill."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from secateur.bundle import atomic
from secateur.bundle.atomic import OwnFolder, atomic_folder, check_file_free, check_folder_free, write_text
from secateur.bundle.reader import BUNDLE_FOLDER
from secateur.errors import BadOutput

FOLDER = OwnFolder("a folder", lambda folder: (folder / "file").is_file(), keep="engines")


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


def in_child(code: str, *arguments: str) -> str:
    """Run code that kills its own process, and return what it printed."""
    found = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    assert found.returncode == -signal.SIGKILL
    return found.stdout


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    """The state of a calibration is written many times, and leftovers may be gigabytes."""
    code = (
        "import os, sys; from pathlib import Path; from secateur.bundle.atomic import write_with\n"
        "write_with(Path(sys.argv[1]), lambda path: (path.write_text('half'), os.kill(os.getpid(), 9)))\n"
    )
    for name in ("a[1].txt", "b.txt"):
        in_child(code, str(tmp_path / name))
    left = sorted(path.name for path in tmp_path.glob(".b.txt.partial-*"))
    assert len(left) == 2
    write_text(tmp_path / "a[1].txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a[1].txt", *left}


def test_files_that_another_thread_or_container_writes_are_left_alone(tmp_path: Path) -> None:
    """They have no common process numbers; the lock is what both see."""
    path = tmp_path / "a.txt"
    first, second = list[Path](), list[Path]()

    def inner(partial: Path) -> None:
        partial.write_text("inner")
        second.append(partial)

    def outer(partial: Path) -> None:
        partial.write_text("outer")
        atomic.write_with(path, inner)
        first.append(partial)
        assert partial.read_text() == "outer" and path.read_text() == "inner"

    atomic.write_with(path, outer)
    assert first != second and path.read_text() == "outer"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_without_locks_nothing_of_others_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)
    other = tmp_path / ".a.txt.partial-0123abcd"
    for path in (other, Path(f"{other}.lock")):
        path.write_text("half")
    write_text(tmp_path / "a.txt", "whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a.txt", other.name, f"{other.name}.lock"}


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
    with atomic_folder(target, force, FOLDER) as folder:
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
        with atomic_folder(tmp_path / "out", False, FOLDER) as folder:
            (folder / "file").write_text("two")
            (tmp_path / "out").mkdir()  # by another process
            (tmp_path / "out" / "file").write_text("one")
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("exchange", [True, False], ids=["renameat2", "three renames"])
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
    with atomic_folder(tmp_path / "out", True, FOLDER) as folder:
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
        if self.name == "engines":
            raise OSError(errno.EBUSY, "Device or resource busy")
        return rename(self, target)

    if fails == "rename":
        monkeypatch.setattr(Path, "rename", refuse)
    else:
        monkeypatch.setattr(atomic, "_exchange", lambda new, old: (_ for _ in ()).throw(OSError(5, "no")))
    with pytest.raises(BadOutput, match="nothing was changed"):
        with atomic_folder(tmp_path / "out", True, FOLDER) as folder:
            (folder / "file").write_text("two")
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert (tmp_path / "out" / "engines" / "a.plan").read_text() == "plan"


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "out", True, FOLDER) as folder:
        (folder / "file").write_text("half")
        raise RuntimeError
    assert (tmp_path / "out" / "file").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    write(tmp_path / "out", "one")
    with pytest.raises(BadOutput, match="No space left on device; nothing was changed"):
        with atomic_folder(tmp_path / "out", True, FOLDER):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert (tmp_path / "out" / "file").read_text() == "one"


def test_force_replaces_only_folders_with_the_marker(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "precious").write_text("one")
    with pytest.raises(BadOutput, match="is not a folder of Secateur, so --force does not replace it"):
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
        "import sys, time; from pathlib import Path; from secateur.bundle.atomic import OwnFolder, atomic_folder\n"
        "with atomic_folder(Path(sys.argv[1]), True, OwnFolder('a folder', lambda _: True)) as folder:\n"
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


KILLED_AT_EVERY_STEP = """
import ctypes, json, os, shutil, sys
from pathlib import Path
from secateur.bundle import atomic

root, exchange = Path(sys.argv[1]), sys.argv[2] == "exchange"
target = root / "out"
own = atomic.OwnFolder("a folder", lambda folder: (folder / "file").is_file(), keep="engines")
steps = iter(())
if not exchange:  # the file system refuses it
    ctypes.CDLL = lambda *_, **__: type("Library", (), {"renameat2": staticmethod(lambda *_: -1)})

def killing(call):
    def step(*arguments, **keywords):
        if next(steps) == 0:
            os._exit(9)
        return call(*arguments, **keywords)
    return step

for name in ("mkdir", "rename", "replace", "unlink", "rmdir", "open"):
    setattr(os, name, killing(getattr(os, name)))
if exchange:
    library, exact = ctypes.CDLL(None, use_errno=True), ctypes.CDLL
    ctypes.CDLL = lambda *_, **__: type("Library", (), {"renameat2": staticmethod(killing(library.renameat2))})

def state():
    read = lambda name: (target / name).read_text() if (target / name).is_file() else None
    return [read("file"), read("more"), read("engines/gpu/a.plan")]

def write(text):
    with atomic.atomic_folder(target, True, own) as folder:
        (folder / "file").write_text(text)
        (folder / "more").write_text(text)

kill = -1
while True:
    kill += 1
    steps = iter(range(10**6, 0, -1))
    shutil.rmtree(root)
    root.mkdir()
    write("old")
    (target / "engines" / "gpu").mkdir(parents=True)
    (target / "engines" / "gpu" / "a.plan").write_text("plan")
    child = os.fork()
    if child == 0:
        steps = iter(range(kill, -(10**6), -1))
        write("new")
        os._exit(0)
    done = os.waitpid(child, 0)[1] == 0
    before = state()
    atomic.check_folder_free(target, True, own)
    print(json.dumps([before, state(), sorted(path.name for path in root.iterdir())]))
    if done:
        break
"""


@pytest.mark.parametrize("exchange", ["exchange", "renames"])
def test_a_kill_at_any_step_keeps_the_old_or_the_new_folder_and_its_engines(tmp_path: Path, exchange: str) -> None:
    command = [sys.executable, "-c", KILLED_AT_EVERY_STEP, str(tmp_path / "root"), exchange]
    (tmp_path / "root").mkdir()
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    kills = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(kills) > 10 and kills[-1] == [["new", "new", "plan"]] * 2 + [["out"]]
    for before, after, names in kills:
        assert after in (["old", "old", "plan"], ["new", "new", "plan"]) and names == ["out"]
        assert before[0] == before[1] == after[0] or (exchange == "renames" and before == [None, None, None])
    assert ["old", "old", "plan"] in [after for _, after, _ in kills]


def test_only_bundles_are_replaced(tmp_path: Path) -> None:
    """A manifest.json is also what web apps and browser extensions have."""
    graphs = [{"name": "embed", "kind": "embed", "file": "onnx/embed.onnx"}]
    ours = {"schema": 1, "model": {"fingerprint": "sha256:0"}, "graphs": graphs}
    others: dict[str, object] = {
        "web app": {"name": "shop", "icons": [{"src": "a.png"}], "start_url": "/"},
        "extension": {"manifest_version": 3, "name": "x", "version": "1"},
        "a list": [1],
        "a schema alone": {"schema": 2},
        "no graphs": {**ours, "graphs": []},
        "other graphs": {**ours, "graphs": [{"name": "a"}]},
        "a model's name": {**ours, "model": "llava"},
    }
    for name, content in others.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "manifest.json").write_text(json.dumps(content))
        with pytest.raises(BadOutput, match="is not a bundle of Secateur, so --force does not replace it"):
            check_folder_free(folder, True, BUNDLE_FOLDER)
    (tmp_path / "web app" / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(BadOutput, match="is not a bundle of Secateur"):
        check_folder_free(tmp_path / "web app", True, BUNDLE_FOLDER)
    (tmp_path / "web app" / "manifest.json").write_text(json.dumps(ours))
    check_folder_free(tmp_path / "web app", True, BUNDLE_FOLDER)
