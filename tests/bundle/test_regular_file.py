# SPDX-License-Identifier: Apache-2.0
"""Only regular files of a limited size are read; nothing else blocks or fills the memory."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from secateur.bundle.regular_file import Unreadable, open_regular, read_bytes, read_text


def test_regular_files_and_links_to_them_are_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"caf\xc3\xa9")
    (tmp_path / "b").symlink_to("a")
    assert read_bytes(tmp_path / "b") == b"caf\xc3\xa9" and read_text(tmp_path / "a", 5) == "café"
    with open_regular(tmp_path / "a") as file:
        assert file.read(3) == b"caf"
    with pytest.raises(Unreadable, match="it has 5 bytes, and the most is 4"):
        read_bytes(tmp_path / "a", 4)
    with pytest.raises(FileNotFoundError):
        read_bytes(tmp_path / "none")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


@pytest.mark.parametrize(
    "make",
    [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.mkdir(), a_socket],
    ids=["pipe", "device", "folder", "socket"],
)
def test_what_is_no_regular_file_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a")
    with pytest.raises(OSError, match="not a regular file|No such device"):  # a socket cannot even be opened
        read_bytes(tmp_path / "a")
