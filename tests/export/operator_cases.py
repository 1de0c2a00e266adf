# SPDX-License-Identifier: Apache-2.0
"""The rules of the operator tables, with a graph that violates each and a similar one that does not."""

from __future__ import annotations

from secateur.engines.version import Version
from tests.export.rules import NEW, NEWEST, Rule

TOPK = "(float[2,5000] x) => (float[2,{k}] v, int64[2,{k}] i) <int64[1] k = {{{k}}}> {{ v, i = TopK{a}(x, k) }}"
EINSUM = '(float[2,{j}] x, float[3,4] y) => (float[a,b] z) {{ z = Einsum<equation = "{e}">(x, y) }}'
FUSED = "TensorRT 10.3 does not have it"
CAPTURE = "a step is captured as one CUDA graph"
EINSUM_SINCE = "NVIDIA/TensorRT CHANGELOG: since 10.12"


def topk(k: int = 3, a: str = "") -> str:
    return TOPK.format(k=k, a=a)


def einsum(e: str, j: int = 3) -> str:
    return EINSUM.format(e=e, j=j)


def dequantized(block: int = 64, zero: bool = False) -> str:
    """A product with int4 weights [128, 1] in blocks."""
    blocks = 128 // block
    ones, scales = ", ".join(["1"] * 128), ", ".join(["1.0"] * blocks)
    points = f", int4[{blocks},1] z = {{{', '.join(['1'] * blocks)}}}" if zero else ""
    return (
        f"(float[2,128] x) => (float[2,1] y) <int4[128,1] q = {{{ones}}}, float[{blocks},1] s = {{{scales}}}{points}> "
        f"{{ w = DequantizeLinear<axis = 0, block_size = {block}>(q, s{', z' if zero else ''}) y = MatMul(x, w) }}"
    )


RULES = {
    "topk unsorted": Rule(
        "sorted is 0", topk(a="<sorted = 0>"), topk(a="<sorted = 1>"), why="operators.md: `sorted` must be 1"
    ),
    "topk of too many values": Rule("K is 3841, at most 3840", topk(3841), topk(3840), version=NEWEST),
    "topk with a computed K": Rule(
        "K is computed",
        "(float[2,9] x, int64[1] n) => (float[a,b] v, int64[a,b] i) { m = Identity(n) v, i = TopK(x, m) }",
        "(float[2,9] x) => (float[a,b] v, int64[a,b] i) <int64 n = {3}, int64[1] s = {1}> "
        "{ o = Reshape(n, s) m = Identity(o) v, i = TopK(x, m) }",
        why="the number of kept tokens must be a constant",
    ),
    "nonzero": Rule(
        "shape of its output depends on the data",
        "(float[2,9] x) => (int64[2,n] y) { y = NonZero(x) }",
        "(float[2,9] x) => (float[2,9] y) { y = Abs(x) }",
        version=NEWEST,
    ),
    "compress": Rule(
        "shape of its output depends on the data",
        "(float[9] x, bool[9] c) => (float[n] y) { y = Compress(x, c) }",
        version=NEWEST,
    ),
    "unique": Rule(
        "shape of its output depends on the data", "(float[9] x) => (float[n] y) { y = Unique(x) }", version=NEWEST
    ),
    "if": Rule(
        "control flow",
        "(float[9] x, bool[1] c) => (float[9] y) { y = If(c) <then_branch = t () => (float[9] a) { a = Abs(x) }, "
        "else_branch = e () => (float[9] b) { b = Neg(x) }> }",
        version=NEWEST,
        why=CAPTURE,
    ),
    "loop": Rule(
        "control flow",
        "(float[9] x) => (float[9] y) <int64 n = {3}, bool t = {1}> { y = Loop(n, t, x) "
        "<body = b (int64 i, bool c, float[9] a) => (bool d, float[9] e) { d = Identity(c) e = Abs(a) }> }",
        version=NEWEST,
        why=CAPTURE,
    ),
    "optional": Rule(
        "optional values",
        "(float[9] x) => (float[9] y) { o = Optional(x) y = OptionalGetElement(o) }",
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
        "not every version of TensorRT has it",
        "(float16[1,2,16,64] q, float16[1,2,16,64] k, float16[1,2,16,64] v) => (float16[1,2,16,64] y) "
        "{ y = Attention(q, k, v) }",
        "(float16[1,2,16,64] q, float16[1,2,16,64] k, float16[1,2,16,64] v) => (float16[1,2,16,64] y) "
        "{ t = Transpose<perm = [0, 1, 3, 2]>(k) p = MatMul(q, t) s = Softmax(p) y = MatMul(s, v) }",
        23,
        NEWEST,
        FUSED,
    ),
    "rms norm": Rule(
        "not every version of TensorRT has it",
        "(float[2,8] x, float[8] s) => (float[2,8] y) { y = RMSNormalization(x, s) }",
        "(float[2,8] x, float[8] s) => (float[2,8] y) <int64[1] a = {1}> "
        "{ m = Mul(x, x) n = ReduceMean(m, a) r = Sqrt(n) d = Div(x, r) y = Mul(d, s) }",
        23,
        NEWEST,
        FUSED,
    ),
    "rotary embedding": Rule(
        "not every version of TensorRT has it",
        "(float[1,2,3,4] x, float[9,2] c, int64[1,3] p) => (float[1,2,3,4] y) { y = RotaryEmbedding(x, c, c, p) }",
        opset=23,
        version=NEWEST,
        why=FUSED,
    ),
    "tensorscatter": Rule(
        "not every version of TensorRT has it",
        "(float[1,2,9,4] x, float[1,2,1,4] u, int64[1] i) => (float[1,2,9,4] y) { y = TensorScatter(x, u, i) }",
        opset=24,
        version=NEWEST,
        why=FUSED,
    ),
    "swish": Rule(
        "not every version of TensorRT has it",
        "(float[2,9] x) => (float[2,9] y) { y = Swish(x) }",
        "(float[2,9] x) => (float[2,9] y) { s = Sigmoid(x) y = Mul(x, s) }",
        24,
        NEWEST,
        FUSED,
    ),
    "cumsum along a computed axis": Rule(
        "axis is computed",
        "(float[2,9] x, int64 a) => (float[2,9] y) { y = CumSum(x, a) }",
        "(float[2,9] x) => (float[2,9] y) <int64 a = {1}> { y = CumSum(x, a) }",
        why="operators.md at 10.6: `axis` must be an initializer",
    ),
    "unsqueeze along computed axes": Rule(
        "axes is computed",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {1}, int64[1] b = {1}> { c = Sub(a, b) y = Unsqueeze(x, c) }",
        "(float[9] x) => (float[1,9] y) <int64[1] a = {0}> { y = Unsqueeze(x, a) }",
        why="operators.md at 10.6: `axes` must be a constant tensor",
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
    "einsum with an ellipsis": Rule("ellipsis", einsum("...j,jk->...k"), einsum("ij,jk->ik"), why=EINSUM_SINCE),
    "einsum of a diagonal": Rule("diagonal", einsum("ii,jk->jk", j=2), einsum("ij,jk->ik"), why=EINSUM_SINCE),
    "einsum that broadcasts": Rule("broadcast", einsum("ij,jk->ik", j=1), einsum("ij,jk->ik"), why=EINSUM_SINCE),
    "cast to an unsupported type": Rule(
        "'z' is double",
        "(float[9] x) => (float[9] y) { z = Cast<to = 11>(x) y = Cast<to = 1>(z) }",
        "(float[9] x) => (float[9] y) { z = Cast<to = 7>(x) y = Cast<to = 1>(z) }",
        version=NEWEST,
        why="operators.md: DOUBLE is computed as FLOAT",
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
        "(float[a,b] x) => (float[a,b] z) { s = Shape(x) y = ConstantOfShape(s) z = Add(x, y) }",
        why="operators.md at 9.2: FP32 only; at 10.6: all dtypes",
    ),
    "opset too new": Rule(
        "opset 21 is not within 9 and 20",
        "(float[9] x) => (float[9] y) { y = Abs(x) }",
        opset=21,
        why="TensorRT 10.3 documents opset 20",
    ),
    "int4 with zero points": Rule("x_zero_point", dequantized(zero=True), dequantized(), 21, NEW),
    "int4 in blocks of 32": Rule(
        "block_size is 32", dequantized(32), dequantized(64), 21, NEW, "NvInfer.h: blocks of 64 or 128 values"
    ),
}
SHAPED = {  # operators with inputs that set the shape of the output, here `c`
    "Reshape": "y = Reshape(x, c)",
    "Expand": "y = Expand(x, c)",
    "Tile": "y = Tile(x, c)",
    "Slice": "y = Slice(x, c, c)",
    "Range": "s = Squeeze(c) r = Range(s, s, s) y = Cast<to = 1>(r)",
    "Split": "y = Split(x, c)",
    "Pad": "p = Concat<axis = 0>(c, c) y = Pad(x, p)",
    "ConstantOfShape": "y = ConstantOfShape(c)",
}


def sized(source: str, body: str) -> str:
    return f"(float[4] x) => (float[n] y, float[4] z) <int64[1] one = {{1}}> {{ z = Abs(x) {source} {body} }}"


RULES |= {
    f"{operator.lower()} to sizes from the data": Rule(
        "sets the shape of the output and depends on the data",
        sized("v, c = TopK(x, one)", body),
        sized("c = Shape(x)", body),
        why="sizes that depend on data prevent buffers of fixed sizes",
    )
    for operator, body in SHAPED.items()
}
