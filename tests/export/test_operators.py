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
from tests.export.rules import NEW, NEWEST, OLD, Rule, model

TOPK = "(float[2,5000] x) => (float[2,{k}] v, int64[2,{k}] i) <int64[1] k = {{{k}}}> {{ v, i = TopK{a}(x, k) }}"
EINSUM = '(float[2,{j}] x, float[3,4] y) => (float[a,b] z) {{ z = Einsum<equation = "{e}">(x, y) }}'


def topk(k: int = 3, a: str = "") -> str:
    return TOPK.format(k=k, a=a)


def einsum(e: str, j: int = 3) -> str:
    return EINSUM.format(e=e, j=j)


RULES = {
    "topk unsorted": Rule("sorted is 0", topk(a="<sorted = 0>"), topk(a="<sorted = 1>")),
    "topk of too many values": Rule("K is 3841, at most 3840", topk(3841), topk(3840), version=NEWEST),
    "topk with a computed K": Rule(
        "K is computed",
        "(float[2,9] x, int64[1] n) => (float[a,b] v, int64[a,b] i) { m = Identity(n) v, i = TopK(x, m) }",
        "(float[2,9] x) => (float[a,b] v, int64[a,b] i) <int64 n = {3}, int64[1] s = {1}> "
        "{ o = Reshape(n, s) m = Identity(o) v, i = TopK(x, m) }",
    ),
    "nonzero": Rule(
        "shape of its output depends on the data",
        "(float[2,9] x) => (int64[2,n] y) { y = NonZero(x) }",
        "(float[2,9] x) => (float[2,9] y) { y = Abs(x) }",
        version=NEWEST,
    ),
    "sequence": Rule(
        "sequences",
        "(float[2,9] x) => (float[2,9] y) <int64 n = {0}> { s = SequenceConstruct(x) y = SequenceAt(s, n) }",
        "(float[2,9] x) => (float[2,9] y) { y = Identity(x) }",
        version=NEWEST,
    ),
    "scatternd that adds": Rule(
        "reduction is add",
        '(float[9] x, int64[2,1] i, float[2] u) => (float[9] y) { y = ScatterND<reduction = "add">(x, i, u) }',
        '(float[9] x, int64[2,1] i, float[2] u) => (float[9] y) { y = ScatterND<reduction = "none">(x, i, u) }',
    ),
    "attention": Rule(
        "later versions do in part",
        "(float16[1,2,3,4] q) => (float16[1,2,3,4] y) { y = Attention(q, q, q) }",
        "(float16[1,2,3,4] q) => (float16[1,2,3,4] y) "
        "{ t = Transpose<perm = [0, 1, 3, 2]>(q) p = MatMul(q, t) s = Softmax(p) y = MatMul(s, q) }",
        23,
        NEWEST,
    ),
    "rms norm": Rule(
        "later versions do in part",
        "(float[2,8] x, float[8] s) => (float[2,8] y) { y = RMSNormalization(x, s) }",
        "(float[2,8] x, float[8] s) => (float[2,8] y) <int64[1] a = {1}> "
        "{ m = Mul(x, x) n = ReduceMean(m, a) r = Sqrt(n) d = Div(x, r) y = Mul(d, s) }",
        23,
        NEWEST,
    ),
    "rotary embedding": Rule(
        "later versions do in part",
        "(float[1,2,3,4] x, float[9,2] c, int64[1,3] p) => (float[1,2,3,4] y) { y = RotaryEmbedding(x, c, c, p) }",
        opset=23,
        version=NEWEST,
    ),
    "tensorscatter": Rule(
        "later versions do in part",
        "(float[1,2,9,4] x, float[1,2,1,4] u, int64[1] i) => (float[1,2,9,4] y) { y = TensorScatter(x, u, i) }",
        opset=24,
        version=NEWEST,
    ),
    "swish": Rule(
        "later versions do in part",
        "(float[2,9] x) => (float[2,9] y) { y = Swish(x) }",
        "(float[2,9] x) => (float[2,9] y) { s = Sigmoid(x) y = Mul(x, s) }",
        24,
        NEWEST,
    ),
    "cumsum along a computed axis": Rule(
        "axis is computed",
        "(float[2,9] x, int64 a) => (float[2,9] y) { y = CumSum(x, a) }",
        "(float[2,9] x) => (float[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
    ),
    "cumsum of integers": Rule(
        "'x' is int64",
        "(int64[2,9] x) => (int64[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
        "(float[2,9] x) => (float[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
    ),
    "unsqueeze along computed axes": Rule(
        "axes is computed",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {1}, int64[1] b = {1}> { c = Sub(a, b) y = Unsqueeze(x, c) }",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {0}> { y = Unsqueeze(x, a) }",
    ),
    "unsqueeze along axes of the data": Rule(
        "axes depends on an input",
        "(float[9] x, int64[1] a) => (float[p,q] y) { y = Unsqueeze(x, a) }",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {1}, int64[1] b = {1}> { c = Sub(a, b) y = Unsqueeze(x, c) }",
        version=Version(10, 13),
    ),
    "squeeze without axes": Rule(
        "no axes",
        "(float[n,9] x) => (float[9] y) { y = Squeeze(x) }",
        "(float[1,9] x) => (float[9] y) { y = Squeeze(x) }",
    ),
    "reduction along computed axes": Rule(
        "axes is computed",
        "(float[2,9] x, int64[1] a) => (float[p,q] y) { y = ReduceMax(x, a) }",
        "(float[2,9] x) => (float[2,1] y) <int64[1] a = {1}> { y = ReduceMax(x, a) }",
        version=NEWEST,
    ),
    "layer norm with its mean": Rule(
        "output 'm'",
        "(float[2,8] x, float[8] s) => (float[2,8] y, float[2,1] m) { y, m = LayerNormalization(x, s) }",
        "(float[2,8] x, float[8] s) => (float[2,8] y) { y = LayerNormalization(x, s) }",
    ),
    "convolution over one dimension": Rule(
        "over 1 dimensions",
        "(float[1,2,9] x, float[3,2,3] w) => (float[1,3,7] y) { y = Conv(x, w) }",
        "(float[1,2,9,9] x, float[3,2,3,3] w) => (float[1,3,7,7] y) { y = Conv(x, w) }",
    ),
    "einsum with an ellipsis": Rule("ellipsis", einsum("...j,jk->...k"), einsum("ij,jk->ik")),
    "einsum of a diagonal": Rule("diagonal", einsum("ii,jk->jk", j=2), einsum("ij,jk->ik")),
    "einsum that broadcasts": Rule("broadcast", einsum("ij,jk->ik", j=1), einsum("ij,jk->ik")),
    "equal of booleans": Rule(
        "'x' is bool",
        "(bool[9] x) => (bool[9] y) { y = Equal(x, x) }",
        "(bool[9] x) => (bool[9] y) { y = And(x, x) }",
        version=NEWEST,
    ),
    "cast to an unsupported type": Rule(
        "'z' is double",
        "(float[9] x) => (float[9] y) { z = Cast<to = 11>(x) y = Cast<to = 1>(z) }",
        "(float[9] x) => (float[9] y) { z = Cast<to = 7>(x) y = Cast<to = 1>(z) }",
        version=NEWEST,
    ),
    "input of unsigned integers": Rule(
        "'x' is uint64",
        "(uint64[9] x, int64[9] z) => (int64[9] y) { y = Neg(z) }",
        "(int64[9] x, int64[9] z) => (int64[9] y) { y = Add(x, z) }",
        version=NEWEST,
    ),
    "filled with integers": Rule(
        "another dtype",
        "(float[a,b] x) => (int64[a,b] y) { s = Shape(x) y = ConstantOfShape<value = int64[1] {1}>(s) }",
        "(float[a,b] x) => (float[a,b] y) { s = Shape(x) y = ConstantOfShape(s) }",
    ),
    "opset too new": Rule(
        "opset 21 is not within 9 and 20",
        "(float[9] x) => (float[9] y) { y = Abs(x) }",
        opset=21,
        version=Version(10, 13),
    ),
}
# Operators with inputs that set the shape of the output; `c` is computed from data or from a shape.
SHAPED = {
    "Reshape": "y = Reshape(x, {c})",
    "Expand": "y = Expand(x, {c})",
    "Tile": "y = Tile(x, {c})",
    "Slice": "y = Slice(x, {c}, {c})",
    "Range": "s = Squeeze({c}) y = Range(s, s, s)",
    "Split": "y, z = Split(x, {c})",
    "Pad": "y = Pad(x, {c})",
    "ConstantOfShape": "y = ConstantOfShape({c})",
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule(rule: Rule) -> None:
    rule.check()


@pytest.mark.parametrize("operator", SHAPED)
def test_a_shape_must_not_depend_on_data(operator: str) -> None:
    def graph(source: str) -> onnx.ModelProto:
        body = SHAPED[operator].format(c="c")
        kind = "int64" if operator == "Range" else "float"
        return model(f"(float[4] x, int64[1] data) => ({kind}[n] y) {{ c = {source} {body} }}")

    (found,) = {(x.operator, x.problem.partition("' ")[2]) for x in lint(graph("Neg(data)"), OLD)}
    assert found == (operator, "sets the shape of the output and depends on the data")
    assert lint(graph("Shape(x)"), OLD) == ()


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
