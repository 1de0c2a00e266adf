# SPDX-License-Identifier: Apache-2.0
"""HTML page of an audit, see secateur/report/page.py."""

from __future__ import annotations

from pathlib import Path

from secateur.audit.results import EXPLANATIONS, MEMORY, Audit
from secateur.report import formats
from secateur.report.page import Filter, render


def report(audit: Audit) -> str:
    """Return the page as text. Jinja2 escapes every string of the data."""
    filters: dict[str, Filter] = {
        "megabytes": lambda value: formats.NONE if value is None else formats.megabytes(value),
        "percent": formats.percent,
        "plain": formats.plain,
        "times": formats.times,
        "shape": lambda shape: "×".join(map(str, shape)),
    }
    compiled = [graph for graph in audit.graphs if not graph.error]
    return render(
        Path(__file__).parent,
        filters,
        a=audit,
        compiled=compiled,
        layers=sum(graph.layers for graph in compiled),
        plans=sum(graph.plan for graph in compiled),
        decode=[p for graph in compiled if graph.layers for p in graph.profiles if p.name == "decode"],
        explanations=EXPLANATIONS,
        memory=MEMORY,
    )
