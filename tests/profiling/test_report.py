# SPDX-License-Identifier: Apache-2.0
"""The report as parsed HTML: self-contained, escaped, with the right figures."""

from __future__ import annotations

import dataclasses
import re

import pytest

from secateur.profiling.report import report
from tests.evaluation.test_report import Element, Tree
from tests.profiling import made

HOSTILE = "<script>alert(\"1\")</script> & 'two' {{ 7 * 7 }}"


@pytest.fixture(scope="module")
def page() -> Element:
    return Tree(report(made.profiling())).root


def rows(table: Element) -> dict[str, list[str]]:
    return {row.all("th")[0].text: [cell.text for cell in row.all("td")] for row in table.all("tr") if row.all("td")}


def test_the_page_is_one_file_without_scripts(page: Element) -> None:
    text = report(made.profiling())
    assert text.startswith("<!doctype html>") and text == report(made.profiling())
    assert not page.all("script") and "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|<link|<iframe|javascript:", text)
    assert not [name for e in page for name in e.attributes if name.startswith("on")]
    assert all(e.attributes.get("href", "#").startswith("#") for e in page.all("a"))
    ids = {e.attributes["id"] for e in page if "id" in e.attributes}
    assert {e.attributes["href"][1:] for e in page.all("a")} <= ids


def test_headings_figures_and_headers(page: Element) -> None:
    levels = [int(e.tag[1]) for e in page if re.fullmatch("h[1-6]", e.tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and set(levels) == {1, 2}
    assert all(e.attributes.get("scope") for e in page.all("th"))
    (figure,) = page.all("figure")
    assert "full 10.0 ms; btp-22 6.6 ms" in figure.text
    assert len(figure.all("rect")) == 2 + 3  # stages that take time
    assert not [e for e in figure.all("path") if e.attributes.get("class") == "late"]  # a sum has no p95


def test_schedules(page: Element) -> None:
    found = rows(page.all("table")[0])
    assert found["full"] == [
        "144.0",
        "1.00",
        "10.00",
        "–",
        "–",
        "15.00",
        "1.00x",
        "6.00",
        "1.00x",
        "0.0",
        "1.00",
        "1.50",
    ]
    assert found["btp-22"][6:] == ["1.52x", "2.60", "2.31x", "9.0", "–", "–"]


def test_graphs_are_listed_under_every_schedule_that_runs_them(page: Element) -> None:
    full, pruned = page.all("table")[1:3]
    assert list(rows(full)) == ["vision.encode", "segment_0.prefill", "segment_0.decode"]
    gate = rows(pruned)["btp-22.0.prefill"]
    assert gate == ["10.0", "0.600", "0.660", "0.720", "0.900", "0.900", "200", "gate", "prefill"]
    assert rows(pruned)["vision.encode"][0] == "60.0" and rows(full)["vision.encode"][0] == "40.0"


def test_layers_advice_and_failures(page: Element) -> None:
    layers = page.all("table")[3]
    assert rows(layers) == {
        '● top <b>"k"</b>·[/red]': ["kgen", "/top/TopK, /cut/Gather", "0.030", "75.0"],
        "mul": ["kgen", "", "0.010", "25.0"],
    }
    head = page.all("header")[0].text
    for said in ("The GPU may wait", "✗ embed.decode", "OutOfMemory", "an upper estimate", "Orin", "10.3", "1.52x"):
        assert said in head, said


def test_a_profile_of_this_process() -> None:
    found = made.profiling()
    graphs = tuple(dataclasses.replace(g, enqueue=None, layers=()) for g in found.graphs)
    chains = tuple(
        dataclasses.replace(c, first_token=dataclasses.replace(c.first_token, p90=11.0, p95=12.0)) for c in found.chains
    )
    here = dataclasses.replace(found, apart=False, source="ort", rounds=30, graphs=graphs, chains=chains, failures=())
    page = Tree(report(here)).root
    assert "ort, 30 rounds" in page.text and "Python code between the graphs" in page.text and "in turn" in page.text
    assert "enqueue" not in [e.text for e in page.all("th")] and "Slowest layers" not in page.text
    assert len([e for e in page.all("path") if e.attributes.get("class") == "late"]) == 2


def test_without_chains() -> None:
    page = Tree(report(dataclasses.replace(made.profiling(), chains=()))).root
    assert "No schedule has results for all of its graphs." in page.text and not page.all("figure")


def test_everything_from_the_data_is_escaped() -> None:
    found = made.profiling()
    chains = tuple(dataclasses.replace(c, schedule=c.schedule + HOSTILE) for c in found.chains)
    graphs = tuple(
        dataclasses.replace(
            g,
            name=g.name + HOSTILE,
            shares={name + HOSTILE: share for name, share in g.shares.items()},
            layers=tuple(dataclasses.replace(line, name=HOSTILE, type=HOSTILE, nodes=(HOSTILE,)) for line in g.layers),
        )
        for g in found.graphs
    )
    names = dict.fromkeys(("bundle", "model", "target", "dtype", "source", "command"), HOSTILE)
    failures = tuple(dataclasses.replace(f, case=HOSTILE, reason=HOSTILE) for f in found.failures)
    found = dataclasses.replace(
        found, chains=chains, graphs=graphs, advice=(HOSTILE,), machine={HOSTILE: HOSTILE}, failures=failures, **names  # type: ignore[arg-type]
    )  # fmt: skip
    page = Tree(report(found)).root
    assert not page.all("script") and page.text.count(" ".join(HOSTILE.split())) > 30
