# SPDX-License-Identifier: Apache-2.0
"""A build writes into no folder that is, or contains, a link: a bundle may come with links that lead out of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from secateur.engines.build import build_lock
from secateur.errors import BadOutput


@pytest.mark.parametrize("link", ["engines", "engines/gpu", "engines/gpu/embed.build.log", "engines/gpu/.lock"])
def test_links_in_the_folder_of_plans_are_refused(tmp_path: Path, link: str) -> None:
    outside, path = tmp_path / "outside", tmp_path / "bundle" / link
    outside.mkdir()
    (outside / "log").write_text("kept")
    path.parent.mkdir(parents=True)
    path.symlink_to(outside if path.suffix == "" and path.name != ".lock" else outside / "log")
    with pytest.raises(BadOutput, match=f"{path} is a link, which could lead out of the bundle; remove it"):
        with build_lock(tmp_path / "bundle/engines/gpu"):
            pass
    assert [file.read_text() for file in outside.iterdir()] == ["kept"]


def test_a_plain_folder_is_locked(tmp_path: Path) -> None:
    with build_lock(tmp_path / "engines/gpu") as lock:
        assert lock >= 0
        with pytest.raises(BadOutput, match="another build is running"):
            with build_lock(tmp_path / "engines/gpu"):
                pass
