# SPDX-License-Identifier: Apache-2.0
"""Each rule of the operator tables, with a graph that violates it and a similar one that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from secateur.engines.version import Version
from secateur.errors import Unparsable
from secateur.export.lint import Finding, lint
from secateur.export.operators import TABLES, caution, table
from tests.export.nvidia import PAGE, updated
from tests.export.operator_cases import RULES
from tests.export.rules import NEW, NEWEST, OLD, Rule, model


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule(rule: Rule) -> None:
    rule.check()


def test_foreign_and_unknown_operators_are_refused() -> None:
    text = "(float[9] x) => (float[9] y) { z = com.microsoft.Gelu(x) y = Bernoulli(z) }"
    findings = lint(model(text, domains=', "com.microsoft" : 1'), NEWEST)
    assert [(x.node, x.operator) for x in findings] == [("first", "com.microsoft.Gelu"), ("second", "Bernoulli")]


def test_the_bodies_of_local_functions_are_checked() -> None:
    made = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20, "own" : 1]> g (float[9] x) => (int64[1,n] y) { y = own.f(x) } '
        '<opset_import: ["" : 20], domain: "own"> f (a) => (b) { b = NonZero(a) }'
    )
    assert [x.operator for x in lint(made, OLD)] == ["NonZero"]


def test_weights_in_another_file_are_not_read(tmp_path: Path) -> None:
    made = model("(float[4] x) => (float[4] y) { y = Add(x, w) }")
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(4, np.float32), "w"))
    onnx.save(made, tmp_path / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    (tmp_path / "m.onnx.data").unlink()
    assert lint(tmp_path / "m.onnx", OLD) == ()


def test_a_finding_is_one_line() -> None:
    finding = Finding("gate", "node_3", "TopK", "K is 4000", "make it smaller", "a header")
    assert str(finding) == "graph 'gate', node 'node_3' (TopK): K is 4000; make it smaller"


def test_every_row_has_a_source_and_tables_are_in_order() -> None:
    assert [t.version for t in TABLES] == sorted(t.version for t in TABLES)
    assert [t.opset for t in TABLES] == sorted(t.opset for t in TABLES)
    for each in TABLES:
        assert all(row.source and (row.dtypes or row.refusal) for row in each.rows.values())
        assert table(each.version) is each


def test_a_version_between_two_tables_uses_the_older_table() -> None:
    assert table(Version(10, 12, 0, 36)).version == Version(10, 3)
    assert table(Version(10, 16, 1, 11)).version == NEW
    assert table(Version(12, 0)).version == NEW and "12.0 is newer" in caution(Version(12, 0))
    assert caution(Version(11, 1, 0, 106)) == caution(OLD) == ""
    with pytest.raises(Unparsable, match="TensorRT 10.2 is too old"):
        table(Version(10, 2))


def test_the_page_is_up_to_date() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == updated(page), "run `make table`"
