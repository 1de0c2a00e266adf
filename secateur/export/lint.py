# SPDX-License-Identifier: Apache-2.0
"""Check whether a TensorRT version supports every node of a graph, without TensorRT.

The tables of operators are in operators.py, the risks of fp16 in fp16_range.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import onnx

from secateur.bundle.reader import Bundle
from secateur.engines.version import Version, floor
from secateur.export import fp16_range
from secateur.export.graph_facts import Facts, Node
from secateur.export.operator_rules import ANY, Refusal, Row, Table
from secateur.export.operators import DOCS, table

LOWEST_OPSET = 9
NETWORK = ANY | {"uint8"}  # dtypes of graph inputs and outputs
EXTEND = "write it with operators of secateur/export/operators.py, or keep it out of the graph"


@dataclass(frozen=True)
class Finding:
    """A node that a TensorRT version refuses, or that may overflow: the problem, the fix and the source of the rule."""

    graph: str
    node: str
    operator: str
    problem: str
    mend: str
    source: str

    def __str__(self) -> str:
        return f"graph '{self.graph}', node '{self.node}' ({self.operator}): {self.problem}; {self.mend}"


@dataclass(frozen=True)
class Used:
    """An operator of a bundle: the number of its nodes, whether all of them pass, and the source of its row."""

    operator: str
    count: int
    ok: bool
    source: str


def lint(model: onnx.ModelProto | Path, version: Version) -> tuple[Finding, ...]:
    """Return the nodes of a graph that TensorRT `version` refuses, or that may overflow in fp16.

    Weights are not read; only small constants in the graph's own file are.

    Raises:
        Unparsable: the version is older than the oldest table.
    """
    name = model.stem if isinstance(model, Path) else model.graph.name
    return tuple(_lint(name, Facts.of(model), table(version)))


def lint_bundle(bundle: Bundle, version: Version | None = None) -> tuple[Finding, ...]:
    """Run `lint` on all graphs of a bundle; the default is the oldest version of its target, without one: empty."""
    rules = _rules(bundle, version)
    return () if rules is None else tuple(x for name, facts in _graphs(bundle) for x in _lint(name, facts, rules))


def operators_used(bundle: Bundle, version: Version | None = None) -> list[Used]:
    """Return the operators of a bundle by name, checked as in `lint_bundle`."""
    rules = _rules(bundle, version)
    if rules is None:
        return []
    counts: Counter[str] = Counter()
    refused: set[str] = set()
    for name, facts in _graphs(bundle):
        counts.update(node.operator for node in facts.nodes)
        refused.update(finding.operator for finding in _lint(name, facts, rules))
    rows = rules.rows
    return [
        Used(operator, count, operator not in refused, rows[operator].source if operator in rows else "no row")
        for operator, count in sorted(counts.items())
    ]


def _rules(bundle: Bundle, version: Version | None) -> Table | None:
    version = version or floor(bundle.manifest.target, bundle.manifest.opset)
    return None if version is None else table(version)


def _graphs(bundle: Bundle) -> Iterator[tuple[str, Facts]]:
    for graph in bundle.manifest.graphs:
        yield graph.name, Facts.of(bundle.path(graph.file))


def _lint(graph: str, facts: Facts, rules: Table) -> Iterator[Finding]:
    opset = max((x.version for x in facts.model.opset_import if x.domain in ("", "ai.onnx")), default=0)
    if not LOWEST_OPSET <= opset <= rules.opset:
        problem = f"opset {opset} is not within {LOWEST_OPSET} and {rules.opset}, which TensorRT {rules.version} parses"
        yield Finding(graph, "the whole graph", "opset", problem, "export with --target tensorrt", DOCS)
    for value in (*facts.model.graph.input, *facts.model.graph.output):
        dtype = facts.dtypes.get(value.name)
        if dtype is not None and dtype not in NETWORK:
            yield Finding(graph, value.name, "input or output", *_dtype(value.name, dtype, NETWORK), DOCS)
    for node in facts.nodes:
        row = rules.rows.get(node.operator)
        if row is None:
            problem = f"not in the table of TensorRT {rules.version}"
            yield Finding(graph, node.name, node.operator, problem, EXTEND, "no row")
            continue
        for refusal in _refusals(node, row):
            yield Finding(graph, node.name, node.operator, *refusal, row.source)
        risk = fp16_range.overflow(node)
        if risk is not None:
            yield Finding(graph, node.name, node.operator, *risk, fp16_range.SOURCE)


def _refusals(node: Node, row: Row) -> Iterator[Refusal]:
    if row.refusal is not None:
        yield row.refusal
        return
    yield from (refusal for check in row.checks if (refusal := check(node)) is not None)
    for i, name in enumerate(node.proto.input):
        yield from _wrong_dtypes([name], node, row.others.get(i, row.dtypes))
        if i in row.sizes and name and name not in node.facts.sizes:
            problem = f"input '{name}' sets the shape of the output and depends on the data"
            yield Refusal(problem, "use a constant, or a value computed from shapes")
    yield from _wrong_dtypes(node.proto.output, node, ANY | row.dtypes)


def _wrong_dtypes(names: Iterable[str], node: Node, allowed: frozenset[str]) -> Iterator[Refusal]:
    """Refuse tensors of another dtype. A dtype is unknown only after an operator that is refused anyway."""
    for name in names:
        dtype = node.facts.dtypes.get(name)
        if dtype is not None and dtype not in allowed:
            yield _dtype(name, dtype, allowed)


def _dtype(name: str, dtype: str, allowed: frozenset[str]) -> Refusal:
    return Refusal(f"'{name}' is {dtype}, not {', '.join(sorted(allowed))}", "cast it to one of these")
