# SPDX-License-Identifier: Apache-2.0
"""Tables of operators: their rows, and functions that make the checks of a row."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Concatenate, NamedTuple, ParamSpec

from secateur.engines.version import Version
from secateur.export.graph_facts import Node

FLOATS = frozenset({"float32", "float16", "bfloat16"})
INTEGERS = frozenset({"int32", "int64"})
NUMBERS = FLOATS | INTEGERS
BOOL = frozenset({"bool"})
ANY = NUMBERS | BOOL
"""All dtypes of tensors within a network; uint8 is for its inputs and outputs only."""


class Refusal(NamedTuple):
    """The problem of a node and its fix."""

    problem: str
    mend: str


P = ParamSpec("P")
Check = Callable[[Node], Refusal | None]


@dataclass(frozen=True)
class Row:
    """TensorRT's support of an operator.

    dtypes   dtypes of all inputs not in `others`
    source   document that the row is taken from
    others   dtypes of single inputs
    sizes    inputs that set the shape of the output, so they must not be computed from data
    checks   further conditions
    refusal  reason why the operator is not supported at all
    """

    dtypes: frozenset[str]
    source: str
    others: Mapping[int, frozenset[str]] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    checks: tuple[Check, ...] = ()
    refusal: Refusal | None = None


@dataclass(frozen=True)
class Table:
    """Support of TensorRT from `version` on: opsets 9 to `opset`, and a row for each supported operator."""

    version: Version
    opset: int
    rows: Mapping[str, Row]

    def then(self, version: Version, opset: int, rows: Mapping[str, Row]) -> Table:
        """Return the table of a later version, which differs from this one by `rows`."""
        return replace(self, version=version, opset=opset, rows={**self.rows, **rows})


def rows_for(operators: str, dtypes: frozenset[str], source: str, **more: Any) -> dict[str, Row]:
    """Return the same row for several operators, named in one string."""
    return {operator: Row(dtypes, source, **more) for operator in operators.split()}


def refused(operators: str, problem: str, mend: str, source: str) -> dict[str, Row]:
    """Return rows of operators that are not supported."""
    return {operator: Row(frozenset(), source, refusal=Refusal(problem, mend)) for operator in operators.split()}


def check(function: Callable[Concatenate[Node, P], Refusal | None]) -> Callable[P, Check]:
    """Turn a function of a node and arguments into a function that takes the arguments and returns a check."""

    def with_arguments(*args: P.args, **kwargs: P.kwargs) -> Check:
        return lambda node: function(node, *args, **kwargs)

    return with_arguments


@check
def attribute(node: Node, name: str, allowed: object, mend: str) -> Refusal | None:
    """Check that the attribute is absent or has the one value that is supported."""
    value = node.attribute(name, allowed)
    return None if value == allowed else Refusal(f"{name} is {value}, only {allowed} is supported", mend)


@check
def constant(node: Node, i: int, name: str) -> Refusal | None:
    """Check that input `i` is absent or a constant of the graph."""
    if not node.input(i) or node.is_constant(i):
        return None
    return Refusal(f"{name} is computed by the graph", f"make {name} a constant of the graph")


@check
def folded(node: Node, i: int, name: str) -> Refusal | None:
    """Check that input `i` is absent or computed from constants, so that a build can compute it."""
    if not node.input(i) or node.input(i) in node.facts.folded:
        return None
    return Refusal(f"{name} depends on an input", f"make {name} a constant of the graph")


@check
def at_most(node: Node, i: int, name: str, limit: int, mend: str) -> Refusal | None:
    """Check that the constant input `i` does not exceed `limit`."""
    values = node.values(i)
    if values is None or not values.size or values.max() <= limit:
        return None
    return Refusal(f"{name} is {values.max()}, at most {limit} is supported", mend)


@check
def no_input(node: Node, /, mend: str, **names: int) -> Refusal | None:
    """Check that these optional inputs are absent."""
    present = [name for name, i in names.items() if node.input(i)]
    return Refusal(f"input {present[0]} is not supported", mend) if present else None


@check
def outputs(node: Node, count: int, mend: str) -> Refusal | None:
    """Check that the node has only the first `count` outputs."""
    extra = [name for name in node.proto.output[count:] if name]
    return Refusal(f"output '{extra[0]}' is not supported", mend) if extra else None
