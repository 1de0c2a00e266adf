# SPDX-License-Identifier: Apache-2.0
"""Nodes that may overflow in half precision, and similar ones that do not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from secateur.export.lint import lint
from tests.export.rules import OLD, Rule, model

RULES = {
    "topk of half scores": Rule(
        "scores in float16",
        "(float16[2,9] x) => (float16[2,3] v, int64[2,3] i) <int64[1] k = {3}> { v, i = TopK(x, k) }",
        "(float16[2,9] x) => (float[2,3] v, int64[2,3] i) <int64[1] k = {3}> { y = Cast<to = 1>(x) v, i = TopK(y, k) }",
    ),
    "norm in half precision": Rule(
        "computed in fp16",
        "(float16[2,8] x, float16[8] s) => (float16[2,8] y) { y = LayerNormalization<stash_type = 10>(x, s) }",
        "(float16[2,8] x, float16[8] s) => (float16[2,8] y) { y = LayerNormalization(x, s) }",
    ),
    "sum in half precision": Rule(
        "sum in fp16",
        "(float16[2,9] x) => (float16[2,1] y) <int64[1] a = {1}> { y = ReduceSum(x, a) }",
        "(float16[2,9] x) => (float16[2,1] y) <int64[1] a = {1}> { y = ReduceMean(x, a) }",
    ),
    "product with itself in half precision": Rule(
        "squares in fp16",
        "(float16[2,9] x) => (float16[2,9] y) { y = Mul(x, x) }",
        "(float16[2,9] x, float16[2,9] z) => (float16[2,9] y) { y = Mul(x, z) }",
    ),
    "power in half precision": Rule(
        "squares in fp16",
        "(float16[2,9] x) => (float16[2,9] y) <float e = {2.0}> { f = Cast<to = 10>(e) y = Pow(x, f) }",
        "(float[2,9] x) => (float[2,9] y) <float e = {2.0}> { y = Pow(x, e) }",
    ),
    "constant too large for half precision": Rule(
        "beyond 65504",
        "(bool[9] m, float[9] x) => (float16[9] y) <float c = {-3.4e38}> { z = Where(m, x, c) y = Cast<to = 10>(z) }",
        "(bool[9] m, float[9] x) => (float16[9] y) <float c = {-3.2e4}> { z = Where(m, x, c) y = Cast<to = 10>(z) }",
    ),
}


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_rule(rule: Rule) -> None:
    rule.check()


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
