# SPDX-License-Identifier: Apache-2.0
"""What the README says is run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.table import README, replaced

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"```console\n(.*?)```", TEXT, re.S)
    for line in block.splitlines()
]
SNIPPETS = re.findall(r"```python\n(.*?)```", TEXT, re.S)
MAKE = [c for c in COMMANDS if c.startswith("make ")]
EXPORT = "python export.py --method btp"
SLOW = [c for c in COMMANDS if "demo-all" in c or "prefill_speed" in c or "tensorrt" in c]
QUICK = [c for c in COMMANDS if c not in (*MAKE, *SLOW, EXPORT)]


def run(command: str, folder: Path) -> str:
    """Run a command of the README with `folder` in the place of build/."""
    words = shlex.split(command.replace("build/", f"{folder}/"))
    head = {"python": [sys.executable], "secateur": [sys.executable, "-m", "secateur"]}[words[0]]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [*head, *words[1:]], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def build(demo_bundle: tuple[Path, dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in the place of build/; the fixture `demo_bundle` has run the export command."""
    folder = tmp_path_factory.mktemp("build")
    (folder / "demo-btp").symlink_to(demo_bundle[0])
    return folder


def test_the_first_commands_are_the_set_up() -> None:
    assert COMMANDS[:2] == ["make demo", "make test"]
    assert EXPORT in COMMANDS and QUICK and SLOW and SNIPPETS


@pytest.mark.parametrize("command", MAKE)
def test_make_targets(command: str) -> None:
    done = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("pytest" if command == "make test" else "export.py --method btp") in done.stdout


@pytest.mark.parametrize("command", QUICK)
def test_commands(command: str, build: Path) -> None:
    assert run(command, build)


@pytest.mark.slow
def test_slow_commands(build: Path) -> None:
    if not (build / "btp-78.json").exists():
        run(next(c for c in QUICK if "--out build/btp-78.json" in c), build)
    for command in SLOW:
        assert run(command, build)


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippets(snippet: str, build: Path) -> None:
    code = snippet.replace("build/", f"{build}/")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 3


def test_the_table_is_fresh() -> None:
    assert TEXT == replaced(TEXT), "run `make table`"


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in [README, *ROOT.glob("docs/*.md")]))
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text(encoding="utf-8")):
        if "://" not in link:
            assert ((ROOT / page).parent / link).exists(), link
