# SPDX-License-Identifier: Apache-2.0
"""Who may know whom, read from the sources."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from secateur import methods, plugins

PACKAGE = Path(__file__).parent.parent / "secateur"
TORCH = {"torch", "transformers", "onnx", "onnxscript", "onnx_ir", "safetensors"}
RULES = [  # files, what they must not import, exceptions
    (
        "runtime/**/*.py",
        TORCH | {"rich", "secateur.export", "secateur.models", "secateur.methods"},
        ("backends/torch.py",),
    ),
    ("profiling/**/*.py", TORCH | {"rich", "secateur.export", "secateur.models", "secateur.methods"}, ()),
    ("export/**/*.py", {"secateur.evaluation", "secateur.commands"}, ()),
    ("engines/**/*.py", TORCH | {"rich", "secateur.export", "secateur.models", "secateur.methods"}, ()),
    ("**/*.py", {"tensorrt", "cuda"}, ("engines/device.py", "backends/_cuda.py")),
    ("artifacts.py", TORCH | {"rich"}, ()),
    ("manifest.py", TORCH | {"rich"}, ()),
    ("layout.py", TORCH | {"rich"}, ()),
    (
        "methods/*.py",
        {"onnx", "onnxruntime", "transformers", "secateur.models", "secateur.export", "secateur.runtime"},
        (),
    ),
    ("models/*.py", {"onnx", "onnxruntime", "secateur.methods", "secateur.export"}, ()),
    ("**/*.py", {"onnxruntime"}, ("backends/ort.py", "export/quantize.py")),
]


def imported(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize(("files", "forbidden", "exceptions"), RULES, ids=[rule[0] for rule in RULES])
def test_who_may_know_whom(files: str, forbidden: set[str], exceptions: tuple[str, ...]) -> None:
    paths = [p for p in PACKAGE.glob(files) if not str(p).endswith(exceptions or ("/none",))]
    assert paths
    for path in paths:
        wrong = {n for n in imported(path) if any(n == f or n.startswith(f + ".") for f in forbidden)}
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_no_method_imports_another() -> None:
    """What two methods share stands in a private file."""
    plugs = {f"secateur.methods.{name}" for name in plugins.names(methods)}
    assert plugs
    for path in (PACKAGE / "methods").glob("*.py"):
        wrong = imported(path) & plugs
        assert not wrong, f"{path.relative_to(PACKAGE)} imports {sorted(wrong)}"


def test_one_place_exports() -> None:
    calls = [p.name for p in PACKAGE.rglob("*.py") if "torch.onnx.export(" in p.read_text(encoding="utf-8")]
    assert calls == ["to_onnx.py"]


def test_files_are_small() -> None:
    long = {p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300}
    assert not long
