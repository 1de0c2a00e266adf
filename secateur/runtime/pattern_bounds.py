# SPDX-License-Identifier: Apache-2.0
"""Check that a regular expression of a tokenizer matches in polynomial time.

Oniguruma backtracks: a repetition within a repetition may take exponential time. Patterns of real tokenizers repeat
sets of characters, at most two in a row, so nothing is lost by refusing the rest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

LONGEST_PATTERN = 4096
MOST_REPEATS = 3
"""Repetitions in one alternative: matching takes up to this power of the text's length."""
MOST_COPIES = 256
"""Product of nested counts {n}."""
TOKEN = re.compile(
    r"\\(?P<refer>[gk1-9])|(?P<literal>\\(?:[pP]\{\^?\w+\}|x\{[0-9a-fA-F]+\}|.))|(?P<group>\((?:\?(?:[:=!>]|<[=!]|[im-]*[:)]))?)"
    r"|(?P<close>\))|(?P<either>\|)|(?P<repeat>(?:[*+]|\{\d*,\d*\})[?+]?)|(?P<option>\?[?+]?)|\{(?P<count>\d+)\}[?+]?"
    r"|(?P<set>\[)|(?P<plain>.)",
    re.DOTALL,
)
"""The next part of a pattern. In "(?x)" "(" opens a group, and "?" is then refused as an option of nothing."""


@dataclass
class _Branch:
    """One alternative of a group, or its last part.

    repeats  repetitions in it, one after the other
    copies   largest product of counts
    either   whether it has groups with alternatives
    atoms    its sets and characters in order; None for a group
    """

    repeats: int = 0
    copies: int = 1
    either: bool = False
    atoms: list[str | None] = field(default_factory=list)

    @property
    def separated(self) -> bool:
        """Whether it starts with a character, given once, that nothing else in it matches, as in (-[a-z]+)."""
        first, *others = self.atoms or [None]
        if first is None or first in ".^$" or len(first) != 1 or None in others or self.either:
            return False
        return not any(Split(Regex(atom), "removed").pre_tokenize_str(first) == [] for atom in others if atom)


def check_pattern(pattern: str) -> None:
    """Check that matching takes polynomial time.

    Raises:
        ValueError: the pattern is too long, or may backtrack without end.
    """
    shown = f"the pattern {pattern[:80]!r}"
    if len(pattern) > LONGEST_PATTERN:
        raise ValueError(f"a pattern has {len(pattern)} characters, the most is {LONGEST_PATTERN}")
    groups, last, at = [[_Branch()]], _Branch(), 0
    while at < len(pattern):
        found = TOKEN.match(pattern, at)
        assert found is not None
        start, at = at, _end_of_set(pattern, found.end()) if found["set"] else found.end()
        here = groups[-1][-1]
        if found["refer"] or (found["option"] and last.copies == 0):
            raise ValueError(f"{shown} has a reference, a comment or another construct whose time is not bounded")
        if found["group"]:
            if not found["group"].endswith(")"):  # (?i) sets an option and is no group
                groups.append([_Branch()])
            last = _Branch(copies=0)
        elif found["close"]:
            if len(groups) == 1:
                raise ValueError(f"{shown} closes a group that it does not open")
            inner = groups.pop()
            last = inner[0] if len(inner) == 1 else _joined(inner)
            here = groups[-1][-1]
            here.repeats, here.copies = here.repeats + last.repeats, max(here.copies, last.copies)
            here.either |= last.either
            here.atoms.append(None)
        elif found["either"]:
            groups[-1].append(_Branch())
            last = _Branch(copies=0)
        elif found["repeat"] or found["option"] or found["count"]:
            here.atoms += here.atoms[-1:]  # so that it does not count as given once
        if found["repeat"]:
            if (last.repeats or last.either) and not last.separated:
                raise ValueError(f"{shown} repeats a group that has repetitions or alternatives")
            here.repeats, last = here.repeats + 1, _Branch(repeats=1)
        elif found["count"]:
            last = _Branch(last.repeats, last.copies * int(found["count"]), last.either)
            here.copies, here.repeats = max(here.copies, last.copies), here.repeats + last.repeats
        elif found["literal"] or found["set"] or found["plain"]:
            last = _Branch()
            here.atoms.append(pattern[start:at])
        if here.repeats > MOST_REPEATS or here.copies > MOST_COPIES:
            raise ValueError(f"{shown} has more than {MOST_REPEATS} repetitions in a row or {MOST_COPIES} copies")


def _joined(branches: list[_Branch]) -> _Branch:
    """Return what holds for any of the alternatives."""
    return _Branch(max(b.repeats for b in branches), max(b.copies for b in branches), True, [None])


def _end_of_set(pattern: str, at: int) -> int:
    """Return the end of a set of characters, which may contain others: [a-z[^x]&&[^y]]."""
    depth = 1
    while at < len(pattern) and depth:
        depth += {"[": 1, "]": -1}.get(pattern[at], 0)
        at += 2 if pattern[at] == "\\" else 1
    return at
