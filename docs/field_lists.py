# SPDX-License-Identifier: Apache-2.0
"""Griffe extension for mkdocstrings: show the aligned field lines of a docstring as a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

FIELD = re.compile(r"(?P<names>\w+(?:, \w+)*)  +(?P<text>\S.*)")


def listed(text: str) -> str:
    """Return `text` with lines such as "name  description" as list items, and their continuation lines joined."""
    lines, inside = list[str](), False
    for line in text.splitlines():
        if match := FIELD.fullmatch(line):
            names = ", ".join(f"`{name}`" for name in match["names"].split(", "))
            lines += ([] if inside else [""]) + [f"- {names}: {match['text']}"]
            inside = True
        elif inside and re.match(r"\s{2,}\S", line):
            lines[-1] += " " + line.strip()
        else:
            inside = False
            lines.append(line)
    return "\n".join(lines)


class FieldLists(griffe.Extension):
    """Rewrite the docstring of every object when it is loaded."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = listed(obj.docstring.value)
