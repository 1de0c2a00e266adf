# SPDX-License-Identifier: Apache-2.0
"""Rules of the source tree that no other tool checks, and the import contracts in setup.cfg."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import grimp
import pytest

PACKAGE = Path(__file__).parent.parent / "secateur"
SOURCES = sorted(PACKAGE.rglob("*.py"))
PLUG_INS = {"Method", "Family", "Backend", "Task", "Target"}
"""Class names that every plug-in of a kind uses."""


def test_import_contracts_hold() -> None:
    # In a process of its own: it switches off the loggers of all packages that are imported already.
    command = (
        "from importlinter.cli import lint_imports; exit(lint_imports(config_filename='setup.cfg', no_cache=True))"
    )
    subprocess.run([sys.executable, "-c", command], cwd=PACKAGE.parent, check=True)


def test_there_are_no_import_cycles() -> None:
    """Lazy imports and imports for type checkers count too."""
    graph = grimp.build_graph("secateur", cache_dir=None)
    for module in sorted(graph.modules):
        for imported in graph.find_modules_directly_imported_by(module):
            back = graph.find_shortest_chain(imported, module)
            assert back is None, f"{module} imports {' -> '.join(back)}"


def test_one_place_exports() -> None:
    calls = [p.name for p in SOURCES if "torch.onnx.export(" in p.read_text(encoding="utf-8")]
    assert calls == ["to_onnx.py"]


def test_files_are_small() -> None:
    long = {p.name: n for p in SOURCES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300}
    assert not long


def test_class_names_are_unique() -> None:
    nodes = (node for p in SOURCES for node in ast.walk(ast.parse(p.read_text(encoding="utf-8"))))
    count = Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))
    assert not {name for name, number in count.items() if number > 1} - PLUG_INS


@pytest.mark.parametrize("package", ["methods", "families", "runtime/backends", "commands", "evaluation/tasks"])
def test_plug_in_folders_hold_plug_ins(package: str) -> None:
    private = [p.name for p in (PACKAGE / package).glob("_*.py") if p.name != "__init__.py"]
    assert not private


def test_no_package_imports_private_modules() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("secateur."):
                home, names = node.module or "", [alias.name for alias in node.names]
                private = [n for n in [*home.split("."), *names] if n.startswith("_") and not n.startswith("__")]
                own = ".".join(path.parent.relative_to(PACKAGE.parent).parts)
                assert not private or home.startswith(own), f"{path.relative_to(PACKAGE)} imports {private}"


def test_the_quick_tests_exist() -> None:
    makefile = (PACKAGE.parent / "Makefile").read_text(encoding="utf-8").replace("\\\n", "")
    (words,) = re.findall(r"^QUICK := \$\(addprefix tests/,(.*)\)$", makefile, re.MULTILINE)
    assert all((PACKAGE.parent / "tests" / word).exists() for word in words.split())
