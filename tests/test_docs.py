# SPDX-License-Identifier: Apache-2.0
"""The documentation: the site builds without a warning, the picture is up to date, lines are short."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import PICTURE, layers, picture

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def prose(page: Path) -> list[str]:
    """Return the lines of a page without code blocks, tables and the targets of links."""
    words = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.S | re.M)
    return [re.sub(r"\]\([^)]*\)", "]", line) for line in words.splitlines() if not line.startswith("|")]


def test_the_site_builds(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    for page in (tmp_path / "site").rglob("*.html"):
        assert not re.findall(r'(?:src|<link[^>]*href)="https?://', page.read_text(encoding="utf-8")), page.name


def test_the_picture_is_up_to_date() -> None:
    assert PICTURE.read_text(encoding="utf-8") == picture(), "run `make table`"


def test_every_package_has_a_paragraph() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    missing = {name for row in layers() for name in row if f"`{name}`" not in text}
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_narrow(page: Path) -> None:
    # matrix.md is generated, with one reason on each line
    long = [line for line in prose(page) if len(line) > 120] if page.name != "matrix.md" else []
    assert not long


def test_aligned_fields_of_a_docstring_become_a_list() -> None:
    spec = importlib.util.spec_from_file_location("field_lists", ROOT / "docs" / "field_lists.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "Summary.\n\nkeep, drop  tokens [B, k],\n            ascending\nseed        an int\n\nProse stays."
    assert module.listed(text) == (
        "Summary.\n\n\n- `keep`, `drop`: tokens [B, k], ascending\n- `seed`: an int\n\nProse stays."
    )
