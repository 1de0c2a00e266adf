# SPDX-License-Identifier: Apache-2.0
"""The lint against the parser and the builder of TensorRT for RTX: what each of them refuses."""

from __future__ import annotations

import pytest

from secateur.engines.compiler import compile_graph
from secateur.engines.manifest import Limits
from secateur.engines.shapes import profiles
from secateur.export import fp16_range
from secateur.export.lint import lint
from secateur.export.operators import TABLES
from tests.export import test_fp16_range
from tests.export.minimal_graphs import TEXT, in_onnx, minimal, together
from tests.export.nvidia import outcome
from tests.export.operator_cases import RULES
from tests.export.rules import NEWEST, Rule, model

pytest.importorskip("tensorrt_rtx")

ROWS = {operator: row for operator, row in TABLES[-1].rows.items() if row.refusal is None}
BLOCKS = {"DequantizeLinear"}  # needs weights: see RULES
NARROWER = {  # dtypes that TensorRT for RTX takes, and operators.md does not list
    "Clip": {"int32", "int64"},
    "CumSum": {"int32", "int64"},
    "Equal": {"bool"},
    "Pad": {"bool"},
    "Relu": {"int64"},
    "ScatterElements": {"bool"},
    "ScatterND": {"bool"},
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule(rule: Rule) -> None:
    """Where only the lint refuses the graph, the rule says why."""
    assert bool(outcome(model(rule.bad, rule.opset)).refusal) == (not rule.why)
    if rule.good:
        assert outcome(model(rule.good, rule.opset)) == ("", [])


@pytest.mark.parametrize("rule", test_fp16_range.RULES.values(), ids=test_fp16_range.RULES)
def test_risks_of_fp16_are_no_reason_to_refuse_a_graph(rule: Rule) -> None:
    assert not outcome(model(rule.bad, rule.opset)).refusal


def test_every_operator_has_a_minimal_graph() -> None:
    assert TEXT.keys() | BLOCKS == ROWS.keys()


@pytest.mark.parametrize("operator", TEXT)
def test_what_the_lint_lets_pass_is_parsed_and_built(operator: str) -> None:
    """Each operator in all dtypes of its row."""
    graphs = {dtype: minimal(operator, dtype) for dtype in sorted(in_onnx(operator) & ROWS[operator].dtypes)}
    for graph in graphs.values():
        assert {finding.source for finding in lint(graph, NEWEST)} <= {fp16_range.SOURCE}
    assert graphs and outcome(together(graphs)) == ("", [])


@pytest.mark.parametrize("operator", TEXT)
def test_other_dtypes(operator: str) -> None:
    dtypes = sorted(in_onnx(operator) - ROWS[operator].dtypes)
    assert all(lint(minimal(operator, dtype), NEWEST) for dtype in dtypes)
    taken = {dtype for dtype in dtypes if not outcome(minimal(operator, dtype)).refusal}
    assert taken == NARROWER.get(operator, set())


@pytest.mark.parametrize("fixture", ["trt_bundle", "int4_bundle"])
def test_graphs_of_a_bundle_are_built_without_a_warning(fixture: str, request: pytest.FixtureRequest) -> None:
    """All graphs; attention is fused in every profile of the segments."""
    folder, exported = request.getfixturevalue(fixture)
    manifest = exported.manifest
    shapes = profiles(manifest, Limits(1, 20, 10), "full")
    for spec in manifest.graphs:
        built = compile_graph(folder / spec.file, shapes[spec.name], weights=[weight.name for weight in spec.weights])
        assert built.warnings == (), spec.name
        if spec.kind == "segment":
            layers = sum(x.name.startswith("new_key") for x in spec.outputs)
            for kernels in built.kernels:
                assert sum(kernel.attention for kernel in kernels) == layers, spec.name
