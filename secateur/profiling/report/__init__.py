# SPDX-License-Identifier: Apache-2.0
"""HTML page of a profile, see secateur/report/page.py."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from secateur.engines.cases import KINDS
from secateur.profiling.results import Profiling, note
from secateur.report import formats
from secateur.report.charts import STAGES, Bar, stacked
from secateur.report.page import Filter, render

__all__ = ["report"]


def report(profiling: Profiling) -> str:
    """Return the page as text. Jinja2 and MarkupSafe escape every string of the data."""
    filters: dict[str, Filter] = {
        "ms": partial(formats.milliseconds, digits=2),
        "fine": formats.fine,
        "percent": formats.percent,
        "plain": formats.plain,
        "times": formats.times,
    }
    chains, graphs = profiling.chains, profiling.graphs
    groups = [("", [Bar(one.schedule, one.stages, one.first_token.p50, one.first_token.p95) for one in chains])]
    return render(
        Path(__file__).parent,
        filters,
        p=profiling,
        fastest=min(chains[1:], key=lambda one: one.first_token.p50, default=None),
        # the graphs of each schedule, with the decode step last
        runs=[
            (one, sorted((g for g in graphs if one.schedule in g.shares), key=lambda g: KINDS.index(g.part)))
            for one in chains
        ],
        layered=[graph for graph in graphs if graph.layers],
        enqueued=any(graph.enqueue is not None for graph in graphs),
        stages=[stage for stage in STAGES if any(stage in one.stages for one in chains)],
        bars=stacked(groups) if chains else "",
        note=note(profiling.apart),
    )
