# SPDX-License-Identifier: Apache-2.0
"""Names of TensorRT and CUDA that a source file uses, compared with a snapshot."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
KINDS = ("tensorrt", "tensorrt_rtx", "cuda")
MODULES = {
    "trt": "tensorrt",
    "library.trt": "tensorrt",
    "driver.library.trt": "tensorrt",
    "self.trt": "tensorrt",
    "tensorrt": "tensorrt",
    "cuda": "cuda",
    "cudart": "cuda",
    "self.cudart": "cuda",
    "self._cudart": "cuda",
}
"""Expressions that are one of the modules, in every file."""


@dataclass(frozen=True)
class Snapshot:
    """Contents of a snapshot.

    kind       one of KINDS
    functions  argument names of cuda-python's functions
    """

    kind: str
    version: str
    names: frozenset[str]
    classes: Mapping[str, Mapping[str, Any]]
    functions: Mapping[str, list[str] | None]

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    @classmethod
    def read(cls, path: Path) -> Snapshot:
        data = json.loads(path.read_text(encoding="utf-8"))
        kind = path.name.partition("-")[0]
        return cls(kind, data["version"], frozenset(data["names"]), data["classes"], data.get("functions", {}))


SNAPSHOTS = [Snapshot.read(path) for path in sorted(FOLDER.glob("*.json"))]


def parameters(signature: str) -> list[tuple[str, bool]]:
    """Return the names of the arguments after self, and whether each is optional."""
    inside, depth, parts = signature[signature.index("(") + 1 : signature.rindex(")")], 0, [""]
    for character in inside:
        depth += (character in "[(<") - (character in "])>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    named = [(part.partition(":")[0].partition("=")[0].strip(), "=" in part) for part in parts if part.strip()]
    return named[1:] if named and named[0][0] == "self" else named


def fits(arguments: list[tuple[str, bool]], call: ast.Call) -> bool:
    """Return whether the call passes all required arguments and no others."""
    if any(isinstance(given, ast.Starred) for given in call.args) or any(k.arg is None for k in call.keywords):
        return True
    names = [name for name, _ in arguments]
    given = names[: len(call.args)] + [str(keyword.arg) for keyword in call.keywords]
    needed = {name for name, optional in arguments if not optional}
    return len(call.args) <= len(names) and len(set(given)) == len(given) and needed <= set(given) <= set(names)


class Reader:
    """Finds the uses in one source. `objects` maps expressions of it, such as "self._engine", to classes."""

    def __init__(self, snapshot: Snapshot, objects: Mapping[str, str]) -> None:
        self._snapshot = snapshot
        self._objects = objects if snapshot.kind != "cuda" else {}

    def owner(self, node: ast.expr) -> str:
        """Return the class of an expression, "module", or "" if it is neither."""
        text = ast.unparse(node)
        if MODULES.get(text) == self._snapshot.kind.removesuffix("_rtx"):
            return "module"
        if text in self._objects:
            return self._objects[text]
        if isinstance(node, ast.Attribute) and self.owner(node.value) == "module":
            return node.attr if node.attr in self._snapshot.classes else ""
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner, name = self.owner(node.func.value), node.func.attr
            lines = self._snapshot.classes.get(owner, {}).get(name, [])
            found = re.search(r"-> (\w+)$", lines[0]) if isinstance(lines, list) and lines else None
            return found[1] if found and found[1] in self._snapshot.classes else ""
        return ""

    def complaints(self, source: str) -> Iterator[str]:
        """Return every use that does not exist in this version, or has another signature."""
        tree = ast.parse(source)
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr[:2] != "__" and (owner := self.owner(node.value)):
                problem = self._problem(owner, node, calls.get(id(node)))
                if problem:
                    version = f"{self._snapshot.kind} {self._snapshot.version}"
                    yield f"line {node.lineno}: {ast.unparse(node)} {problem} in {version}"

    def _problem(self, owner: str, node: ast.Attribute, call: ast.Call | None) -> str:
        if owner == "module":
            if node.attr not in self._snapshot.names:
                return "is no name"
            known: Any = self._snapshot.classes.get(node.attr, {}).get("__init__", self._function(node.attr))
        else:
            members = self._snapshot.classes.get(owner, {})
            if node.attr not in members:
                return f"is no member of {owner}"
            known = members.get(node.attr, "class")
        if isinstance(node.ctx, ast.Store) and known != "set":
            return "cannot be set"
        if call is None or known == "class":
            return ""
        if not isinstance(known, list):
            return "cannot be called"
        return "" if any(fits(parameters(line), call) for line in known) else f"takes {' or '.join(known)}"

    def _function(self, name: str) -> Any:
        arguments = self._snapshot.functions.get(name)
        return "class" if arguments is None else [f"{name}({', '.join(arguments)})"]


def complaints(source: str, objects: Mapping[str, str], kinds: tuple[str, ...] = KINDS) -> list[str]:
    """Return the errors of a source in any version of these kinds."""
    fitting = [snapshot for snapshot in SNAPSHOTS if snapshot.kind in kinds]
    return [problem for snapshot in fitting for problem in Reader(snapshot, objects).complaints(source)]


def strangers(source: str, objects: Mapping[str, str]) -> set[str]:
    """Return expressions with methods of TensorRT or CUDA that are in no table."""
    found = set()
    for kind in KINDS:
        newest = [snapshot for snapshot in SNAPSHOTS if snapshot.kind == kind][-1]
        reader = Reader(newest, objects)
        every = [member for members in newest.classes.values() for member in members.items()]
        methods = {name for name, value in every if isinstance(value, list) and "_" in name.strip("_")}
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Attribute) and node.attr in methods | newest.functions.keys():
                if not reader.owner(node.value):
                    found.add(ast.unparse(node))
    return found
