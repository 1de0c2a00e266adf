# SPDX-License-Identifier: Apache-2.0
"""Rows of the tables of checks: passed ones of a kind are one row, failed ones are shown in full."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.commands import check
from secateur.terminal import tables


def printed(table: Table) -> list[list[str]]:
    return [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]


def one(name: str, error: float, passed: bool = True) -> dict[str, Any]:
    return {"name": name, "error": error, "tolerance": 1e-4, "passed": passed}


CHECKS = [
    one("vision", 1e-6),
    *(one(f"segment_{i}", i * 1e-6) for i in range(12)),
    *(one(f"btp@448x448.{i}", 0) for i in range(40)),
    one("btp.41", 1.0, False),
    *(one(f"chain, v1.{i}", 2e-5) for i in range(3)),
    one("other tokens kept, btp", 0),
]


def test_passed_checks_of_a_kind_are_one_row() -> None:
    assert printed(tables.parity(CHECKS)) == [
        ["vision", "1e-06", "0.0001", "ok"],
        ["12 segments", "1.1e-05", "0.0001", "ok"],
        ["40 gates", "0", "0.0001", "ok"],
        ["btp.41", "1", "0.0001", "FAILED"],
        ["3 chains", "2e-05", "0.0001", "ok"],
        ["other tokens kept, btp", "0", "0.0001", "ok"],
    ]


def test_all_rows() -> None:
    assert [row[0] for row in printed(tables.parity(CHECKS, every=True))] == [each["name"] for each in CHECKS]


def test_rows_of_two_backends() -> None:
    def graph(name: str, relative: float, passed: bool = True) -> dict[str, Any]:
        worst = {"name": f"out of {name}", "walk": "full", "absolute": 2 * relative, "relative": relative}
        small = worst | {"name": "small", "relative": 0.0}
        return {"graph": name, "runs": 3, "outputs": [small, worst], "worst": worst["name"], "passed": passed}

    graphs = [graph("segment_0", 1e-6), graph("segment_1", 3e-6), graph("segment_2", 1.0, False)]
    result = {"backend": "ort", "against": "torch", "device": None, "graphs": graphs}
    for every, rows in (
        (False, ["2 segments 6 out of segment_1", "segment_2 3"]),
        (True, ["segment_0 3", "segment_1 3"]),
    ):
        console = Console(record=True, width=200, file=io.StringIO())
        check.show(result | ({"all_rows": True} if every else {}), console)
        shown = [" ".join(line.replace("│", " ").split()) for line in console.export_text().splitlines()]
        assert all(any(line.startswith(row) for line in shown) for row in rows)
