# SPDX-License-Identifier: Apache-2.0
"""Update the table of plug-ins in the README: python -m tests.table"""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

from secateur import families, methods, plugins
from secateur.evaluation import tasks
from secateur.runtime import backends

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- table: make table -->\n", "<!-- end of table -->\n"
KINDS: tuple[tuple[str, ModuleType], ...] = (
    ("--method", methods),
    ("--model", families),
    ("--backend", backends),
    ("--task", tasks),
)


def table() -> str:
    """Return a row for each plug-in with the first sentence of its file, which is read but not imported."""
    rows = ["| option | name | what it is |", "|---|---|---|"]
    for option, package in KINDS:
        for name in plugins.names(package):
            source = Path(package.__path__[0], f"{name}.py").read_text(encoding="utf-8")
            text = " ".join((ast.get_docstring(ast.parse(source)) or "").partition("\n\n")[0].split())
            rows.append(f"| `{option}` | `{name}` | {text} |")
    return "\n".join(rows) + "\n"


def replaced(readme: str) -> str:
    """Return the README with an updated table."""
    before, _, rest = readme.partition(BEGIN)
    return before + BEGIN + table() + END + rest.partition(END)[2]


if __name__ == "__main__":
    README.write_text(replaced(README.read_text(encoding="utf-8")), encoding="utf-8")
