# SPDX-License-Identifier: Apache-2.0
"""Problems, table and page of an audit, from made figures."""

from __future__ import annotations

import dataclasses
import io
import json
import re

from rich.console import Console

from secateur.audit.report import report
from secateur.audit.results import EXPLANATIONS, Audit, GraphAudit, KernelGroup, ProfileAudit
from secateur.terminal import audit_tables
from tests.evaluation.test_report import Tree

HOSTILE = "<script>alert(1)</script> & {{ 7 * 7 }}"
PREFILL = ProfileAudit(
    "prefill", {"x": (1, 600, 64)}, 22, 2, 8, (), 9_000_000, 4_000_000, 2_000_000, (KernelGroup("FcAdd", 4, 1_050_000),)
)
DECODE = dataclasses.replace(PREFILL, name="decode", shapes={"x": (1, 1, 64)}, kernels=26, scratch=100, moved=2_100_000)
SEGMENT = GraphAudit("segment_0", "segment", 2, 5_500_000, (PREFILL, DECODE))
GATE = GraphAudit("btp.0", "gate", 0, 1_000, (dataclasses.replace(PREFILL, name="all", attention=0, moved=None),))
AUDIT = Audit(
    "b", "demo", "tensorrt", "fp16", "btp", "TensorRT for RTX 1.7", ("86",), "secateur audit b", (SEGMENT, GATE)
)


def with_graphs(*graphs: GraphAudit) -> Audit:
    return dataclasses.replace(AUDIT, graphs=graphs)


def printed(audit: Audit) -> str:
    stream = io.StringIO()
    audit_tables.show(json.loads(audit.to_json()), Console(file=stream, width=80))
    return stream.getvalue()


def test_problems() -> None:
    assert not AUDIT.problems
    slow = dataclasses.replace(DECODE, attention=1, copies=("__myl_Tran_myl1_1", "__myl_Move_myl1_2"))
    broken = GraphAudit("embed", "embed", 0, 0, (), error="its process ended with signal 9")
    assert with_graphs(dataclasses.replace(SEGMENT, profiles=(PREFILL, slow)), broken).problems == [
        "segment_0, decode: the attention of 1 of 2 layers is not fused",
        "segment_0, decode: kernels that copy a weight in every step: 2, such as __myl_Tran_myl1_1",
        "embed: its process ended with signal 9",
    ]


def test_the_document() -> None:
    segment, gate = json.loads(AUDIT.to_json())["graphs"]
    assert [profile["ratio"] for profile in segment["profiles"]] == [2.0, 1.05] and gate["profiles"][0]["ratio"] is None


def test_the_table() -> None:
    lines = printed(AUDIT).splitlines()
    cells = [line.strip("│ ").split() for line in lines if line.startswith("│")]
    assert "segment_0 │ prefill │ 22 │ 11.0 │ 2/2 │ 0 │ 5.50 │ 9.00 │ 4.00 │ 2.00 │ 2.00x".split() in cells
    assert "decode │ 26 │ 13.0 │ 2/2 │ 0 │ │ 0.00 │ 2.10 │ 2.00 │ 1.05x".split() in cells
    assert "btp.0 │ all │ 22 │ – │ – │ 0 │ 0.00 │ 9.00 │ – │ 2.00 │ –".split() in cells
    assert all(any(line.startswith(f"{name}: ") for line in lines) for name in EXPLANATIONS)
    assert printed(with_graphs(dataclasses.replace(GATE, warnings=("odd",)))).endswith("warning: btp.0: odd\n")


def test_the_page() -> None:
    text = report(AUDIT)
    page = Tree(text).root
    assert text == report(AUDIT) and not page.all("script") and "default-src 'none'" in text
    assert not re.search(r"https?://|url\(|@import|<link|<iframe|javascript:", text)
    assert "<strong>26</strong> kernels in the segments, for 2 layers, and moves\n<strong>1.05x</strong>" in text
    table, *_ = page.all("table")
    rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in table.all("tr")]
    assert ["segment_0", "prefill", "22", "11.0", "2/2", "0", "5.50", "9.00", "4.00", "2.00", "2.00x"] in rows
    assert ["btp.0", "all", "22", "–", "–", "0", "0.00", "9.00", "–", "2.00", "–"] in rows
    assert "FcAdd" in page.text and "50.0" in page.text


def test_hostile_names_and_failures_are_text() -> None:
    failed = GraphAudit(HOSTILE, "gate", 0, 0, (), error=HOSTILE)
    text = report(dataclasses.replace(with_graphs(failed), bundle=HOSTILE, command=HOSTILE))
    page = Tree(text).root
    assert not page.all("script") and "49" not in page.text and page.text.count("{{ 7 * 7 }}") >= 4
    assert HOSTILE in printed(with_graphs(failed)).replace("\n", " ")
