# SPDX-License-Identifier: Apache-2.0
"""Each rule of the lint, with a graph that violates it and a similar one that does not."""

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

OLD, NEW, NEWEST = Version(10, 3), Version(10, 15), Version(11, 1)


def model(text: str, opset: int = 20, domains: str = "") -> onnx.ModelProto:
    """A graph in ONNX's own notation; its nodes are called first, second, third ..."""
    made = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]> g {text}')
    for node, name in zip(made.graph.node, ("first", "second", "third", "fourth"), strict=False):
        node.name = name
    return made


TOPK = "(float[2,5000] x) => (float[2,{k}] v, int64[2,{k}] i) <int64[1] k = {{{k}}}> {{ v, i = TopK{a}({x}, {y}) }}"
EINSUM = '(float[2,{j}] x, float[3,4] y) => (float[a,b] z) {{ z = Einsum<equation = "{e}">(x, y) }}'
ATTENTION = (
    "({f}[1,2,3,4] q, {f}[1,2,5,4] k, {f}[1,2,5,4] v, {f}[{mask}] m, {f}[1,2,6,4] p) => ({f}[1,2,3,4] y{more}) "
    "{{ y{outs} = Attention{a}({ins}) }}"
)


def topk(k: int = 3, a: str = "", x: str = "x", y: str = "k") -> str:
    return TOPK.format(k=k, a=a, x=x, y=y)


def einsum(e: str, j: int = 3) -> str:
    return EINSUM.format(e=e, j=j)


def attention(
    a: str = "", ins: str = "q, k, v, m", f: str = "float16", mask: str = "1,1,3,5", more: str = "", outs: str = ""
) -> str:
    return ATTENTION.format(a=a, ins=ins, f=f, mask=mask, more=more, outs=outs)


def tensorscatter(axis: int) -> str:
    inputs = "float[1,2,9,4] x, float[1,2,1,4] u, int64[1] i"
    return f"({inputs}) => (float[1,2,9,4] y) {{ y = TensorScatter<axis = {axis}>(x, u, i) }}"


# name: (opset, version, a graph that is refused, one that is not, part of the problem)
RULES: dict[str, tuple[int, Version, str, str, str]] = {
    "topk unsorted": (20, OLD, topk(a="<sorted = 0>"), topk(a="<sorted = 1>"), "sorted is 0"),
    "topk of too many": (20, NEWEST, topk(3841), topk(3840), "K is 3841, at most 3840"),
    "topk with a computed K": (
        20,
        OLD,
        "(float[2,9] x, int64[1] n) => (float[a,b] v, int64[a,b] i) { m = Identity(n) v, i = TopK(x, m) }",
        "(float[2,9] x) => (float[a,b] v, int64[a,b] i) <int64 n = {3}, int64[1] s = {1}> "
        "{ o = Reshape(n, s) m = Identity(o) v, i = TopK(x, m) }",
        "K is computed",
    ),
    "topk of half scores": (
        20,
        OLD,
        "(float16[2,9] x) => (float16[2,3] v, int64[2,3] i) <int64[1] k = {3}> { v, i = TopK(x, k) }",
        "(float16[2,9] x) => (float[2,3] v, int64[2,3] i) <int64[1] k = {3}> { y = Cast<to = 1>(x) v, i = TopK(y, k) }",
        "scores in float16",
    ),
    "nonzero": (
        20,
        NEWEST,
        "(float[2,9] x) => (int64[2,n] y) { y = NonZero(x) }",
        "(float[2,9] x) => (float[2,9] y) { y = Abs(x) }",
        "shape of its output depends on the data",
    ),
    "sequence": (
        20,
        NEWEST,
        "(float[2,9] x) => (float[2,9] y) <int64 n = {0}> { s = SequenceConstruct(x) y = SequenceAt(s, n) }",
        "(float[2,9] x) => (float[2,9] y) { y = Identity(x) }",
        "sequences",
    ),
    "scatternd that adds": (
        20,
        OLD,
        '(float[9] x, int64[2,1] i, float[2] u) => (float[9] y) { y = ScatterND<reduction = "add">(x, i, u) }',
        '(float[9] x, int64[2,1] i, float[2] u) => (float[9] y) { y = ScatterND<reduction = "none">(x, i, u) }',
        "reduction is add",
    ),
    "attention before 10.14": (23, Version(10, 13), attention(), "", "does not have it"),
    "attention of three dimensions": (
        23,
        NEW,
        "(float16[1,3,8] q) => (float16[1,3,8] y) { y = Attention<q_num_heads = 2, kv_num_heads = 2>(q, q, q) }",
        attention(),
        "3 dimensions, not 4",
    ),
    "attention mask of two dimensions": (23, NEW, attention(mask="3,5"), attention(mask="1,1,3,5"), "2 dimensions"),
    "attention with a past": (
        23,
        NEW,
        attention(ins="q, k, v, , p, p"),
        attention(ins="q, k, v"),
        "past_key",
    ),
    "attention with present outputs": (
        23,
        NEW,
        attention(more=", float16[1,2,5,4] a, float16[1,2,5,4] b", outs=", a, b"),
        attention(),
        "output 'a'",
    ),
    "attention with softcap": (23, NEW, attention(a="<softcap = 5.0>"), attention(a="<softcap = 0.0>"), "softcap is 5"),
    "attention that gives its products": (
        23,
        NEW,
        attention(a="<qk_matmul_output_mode = 1>"),
        attention(a="<qk_matmul_output_mode = 0>"),
        "qk_matmul_output_mode",
    ),
    "attention with a precision": (23, NEW, attention(a="<softmax_precision = 1>"), attention(), "softmax_precision"),
    "rotary embedding with positions of 32 bits": (
        23,
        NEW,
        "(float[1,2,3,4] x, float[9,2] c, int32[1,3] p) => (float[1,2,3,4] y) { y = RotaryEmbedding(x, c, c, p) }",
        "(float[1,2,3,4] x, float[9,2] c, int64[1,3] p) => (float[1,2,3,4] y) { y = RotaryEmbedding(x, c, c, p) }",
        "'p' is int32, not int64",
    ),
    "norm of two dtypes": (
        23,
        NEW,
        "(float16[2,8] x, float[8] s) => (float[2,8] y) { y = RMSNormalization(x, s) }",
        "(float16[2,8] x, float[8] s) => (float[2,8] y) { z = Cast<to = 1>(x) y = RMSNormalization(z, s) }",
        "float16 and float32",
    ),
    "norm in half precision": (
        23,
        NEW,
        "(float16[2,8] x, float16[8] s) => (float16[2,8] y) { y = RMSNormalization<stash_type = 10>(x, s) }",
        "(float16[2,8] x, float16[8] s) => (float16[2,8] y) { y = RMSNormalization(x, s) }",
        "computed in fp16",
    ),
    "tensorscatter along heads": (24, NEW, tensorscatter(1), tensorscatter(-2), "axis is 1"),
    "swish before 11.0": (
        24,
        NEW,
        "(float[2,9] x) => (float[2,9] y) { y = Swish(x) }",
        "(float[2,9] x) => (float[2,9] y) { y = Gelu(x) }",
        "does not have it",
    ),
    "cumsum along a computed axis": (
        20,
        OLD,
        "(float[2,9] x, int64 a) => (float[2,9] y) { y = CumSum(x, a) }",
        "(float[2,9] x) => (float[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
        "axis is computed",
    ),
    "cumsum of integers": (
        20,
        OLD,
        "(int64[2,9] x) => (int64[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
        "(float[2,9] x) => (float[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
        "'x' is int64",
    ),
    "unsqueeze along computed axes": (
        20,
        OLD,
        "(float[9] x) => (float[1,9] y) <int64[1] a = {1}, int64[1] b = {1}> { c = Sub(a, b) y = Unsqueeze(x, c) }",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {0}> { y = Unsqueeze(x, a) }",
        "axes is computed",
    ),
    "unsqueeze along axes of the data": (
        20,
        Version(10, 13),
        "(float[9] x, int64[1] a) => (float[p,q] y) { y = Unsqueeze(x, a) }",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {1}, int64[1] b = {1}> { c = Sub(a, b) y = Unsqueeze(x, c) }",
        "axes depends on an input",
    ),
    "squeeze without axes": (
        20,
        OLD,
        "(float[n,9] x) => (float[9] y) { y = Squeeze(x) }",
        "(float[1,9] x) => (float[9] y) { y = Squeeze(x) }",
        "no axes",
    ),
    "reduction along computed axes": (
        20,
        NEWEST,
        "(float[2,9] x, int64[1] a) => (float[p,q] y) { y = ReduceMax(x, a) }",
        "(float[2,9] x) => (float[2,1] y) <int64[1] a = {1}> { y = ReduceMax(x, a) }",
        "axes is computed",
    ),
    "layer norm with its mean": (
        20,
        OLD,
        "(float[2,8] x, float[8] s) => (float[2,8] y, float[2,1] m) { y, m = LayerNormalization(x, s) }",
        "(float[2,8] x, float[8] s) => (float[2,8] y) { y = LayerNormalization(x, s) }",
        "output 'm'",
    ),
    "convolution over one dimension": (
        20,
        OLD,
        "(float[1,2,9] x, float[3,2,3] w) => (float[1,3,7] y) { y = Conv(x, w) }",
        "(float[1,2,9,9] x, float[3,2,3,3] w) => (float[1,3,7,7] y) { y = Conv(x, w) }",
        "over 1 dimensions",
    ),
    "einsum with an ellipsis": (20, OLD, einsum("...j,jk->...k"), einsum("ij,jk->ik"), "ellipsis"),
    "einsum of a diagonal": (20, OLD, einsum("ii,jk->jk", j=2), einsum("ij,jk->ik"), "diagonal"),
    "einsum that broadcasts": (20, OLD, einsum("ij,jk->ik", j=1), einsum("ij,jk->ik"), "broadcast"),
    "equal of truth values": (
        20,
        NEWEST,
        "(bool[9] x) => (bool[9] y) { y = Equal(x, x) }",
        "(bool[9] x) => (bool[9] y) { y = And(x, x) }",
        "'x' is bool",
    ),
    "cast to what there is not": (
        20,
        NEWEST,
        "(float[9] x) => (float[9] y) { z = Cast<to = 11>(x) y = Cast<to = 1>(z) }",
        "(float[9] x) => (float[9] y) { z = Cast<to = 7>(x) y = Cast<to = 1>(z) }",
        "'z' is double",
    ),
    "input of unsigned integers": (
        20,
        NEWEST,
        "(uint64[9] x, int64[9] z) => (int64[9] y) { y = Neg(z) }",
        "(int64[9] x, int64[9] z) => (int64[9] y) { y = Add(x, z) }",
        "'x' is uint64",
    ),
    "filled with integers": (
        20,
        OLD,
        "(float[a,b] x) => (int64[a,b] y) { s = Shape(x) y = ConstantOfShape<value = int64[1] {1}>(s) }",
        "(float[a,b] x) => (float[a,b] y) { s = Shape(x) y = ConstantOfShape(s) }",
        "another dtype",
    ),
    "opset too new": (
        21,
        Version(10, 13),
        "(float[9] x) => (float[9] y) { y = Abs(x) }",
        "",
        "opset 21 is not within 9 and 20",
    ),
    "sum in half precision": (
        20,
        OLD,
        "(float16[2,9] x) => (float16[2,1] y) <int64[1] a = {1}> { y = ReduceSum(x, a) }",
        "(float16[2,9] x) => (float16[2,1] y) <int64[1] a = {1}> { y = ReduceMean(x, a) }",
        "sum in fp16",
    ),
    "product with itself in half precision": (
        20,
        OLD,
        "(float16[2,9] x) => (float16[2,9] y) { y = Mul(x, x) }",
        "(float16[2,9] x, float16[2,9] z) => (float16[2,9] y) { y = Mul(x, z) }",
        "squares in fp16",
    ),
    "power in half precision": (
        20,
        OLD,
        "(float16[2,9] x) => (float16[2,9] y) <float e = {2.0}> { f = Cast<to = 10>(e) y = Pow(x, f) }",
        "(float[2,9] x) => (float[2,9] y) <float e = {2.0}> { y = Pow(x, e) }",
        "squares in fp16",
    ),
    "constant too large for half precision": (
        20,
        OLD,
        "(bool[9] m, float[9] x) => (float16[9] y) <float c = {-3.4e38}> { z = Where(m, x, c) y = Cast<to = 10>(z) }",
        "(bool[9] m, float[9] x) => (float16[9] y) <float c = {-3.2e4}> { z = Where(m, x, c) y = Cast<to = 10>(z) }",
        "beyond 65504",
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


@pytest.mark.parametrize("rule", RULES)
def test_a_rule(rule: str) -> None:
    opset, version, bad, good, problem = RULES[rule]
    findings = lint(model(bad, opset), version)
    assert any(problem in found.problem for found in findings), findings
    assert all(found.graph == "g" and found.node and found.mend and found.source for found in findings)
    if good:
        assert lint(model(good, opset), version) == ()


@pytest.mark.parametrize("operator", SHAPED)
def test_a_shape_must_not_depend_on_data(operator: str) -> None:
    def graph(source: str) -> onnx.ModelProto:
        body = SHAPED[operator].format(c="c")
        kind = "int64" if operator == "Range" else "float"
        return model(f"(float[4] x, int64[1] data) => ({kind}[n] y) {{ c = {source} {body} }}")

    (found,) = {(x.operator, x.problem.partition("' ")[2]) for x in lint(graph("Neg(data)"), OLD)}
    assert found == (operator, "sets the shape of the output and depends on the data")
    assert lint(graph("Shape(x)"), OLD) == ()


def test_infinite_constants_are_found_in_any_precision() -> None:
    for dtype in (np.float16, np.float32):
        made = model("(float16[9] x) => (float16[9] y) { y = Add(x, c) }")
        made.graph.input[0].type.tensor_type.elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        made.graph.output[0].CopyFrom(
            onnx.helper.make_tensor_value_info("y", made.graph.input[0].type.tensor_type.elem_type, [9])
        )
        made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(-np.inf, dtype), "c"))
        (found,) = lint(made, OLD)
        assert found.node == "first" and "infinite" in found.problem and "finite" in found.mend
        made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(-3e4, dtype), "c"))
        assert lint(made, OLD) == ()


@pytest.mark.parametrize("body", ["y = Add(x, c)", "m = Greater(x, z) y = Where(m, x, c)"])
def test_a_half_mask_leaves_room_for_scores(body: str) -> None:
    made = model(f"(float16[9] x, float16[9] z) => (float16[9] y) {{ {body} }}")
    smallest = np.finfo(np.float16).min
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array(smallest, np.float16), "c"))
    (found,) = lint(made, OLD)
    assert "beyond 32752" in found.problem
    made.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(np.array(smallest / 2, np.float16), "c"))
    assert lint(made, OLD) == ()


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


def test_every_row_names_its_source_and_every_table_is_one_step() -> None:
    assert [t.version for t in TABLES] == sorted(t.version for t in TABLES)
    assert [t.opset for t in TABLES] == sorted(t.opset for t in TABLES)
    for each in TABLES:
        assert all(row.source and (row.dtypes or row.refusal) for row in each.rows.values())
        assert table(each.version) is each


def test_a_version_between_two_tables_uses_the_older_one() -> None:
    assert table(Version(10, 12, 0, 36)).version == Version(10, 3)
    assert table(Version(10, 16, 1, 11)).version == NEW
    assert table(Version(12, 0)).version == NEWEST and "12.0 is newer" in caution(Version(12, 0))
    assert caution(Version(11, 1, 0, 106)) == caution(OLD) == ""
    with pytest.raises(Unparsable, match="TensorRT 10.2 is too old"):
        table(Version(10, 2))
