# SPDX-License-Identifier: Apache-2.0
"""Symbolic dimensions, compared with Python's own arithmetic."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.manifest import TensorSpec
from secateur.bundle.symbolic_shape import bind, resolve, resolve_shapes, terms

SYMBOLS = {"B": 2, "S": 100, "P": 7}
parts = st.lists(st.tuples(st.sampled_from("+-"), st.sampled_from(["B", "S", "P", "3", "72"])), min_size=1, max_size=6)


@given(parts)
def test_a_sum_equals_python_arithmetic(terms_: list[tuple[str, str]]) -> None:
    text = "".join(sign + name for sign, name in terms_).removeprefix("+")
    want = eval(text, {}, dict(SYMBOLS))
    if want < 0:
        with pytest.raises(ValueError, match="at least 0"):
            resolve(text, SYMBOLS)
    else:
        assert resolve(text, SYMBOLS) == want


@pytest.mark.parametrize("text", ["", "S-", "S*2", "S--1", "2S", "S 2!", "(S)", "é"])
def test_invalid_dimensions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="dimension"):
        terms(text)


def test_unknown_symbol() -> None:
    with pytest.raises(ValueError, match="'S-72' needs 'S'"):
        resolve("S-72", {"B": 1})


@given(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9))
def test_bind_is_the_inverse_of_resolve(b: int, s: int, p: int) -> None:
    specs = (
        TensorSpec("mask", "int64", ("B", "P+S")),
        TensorSpec("hidden", "float32", ("B", "S", 16)),
        TensorSpec("past", "float32", ("P", "B", 2)),
    )
    shapes = {"mask": (b, p + s), "hidden": (b, s, 16), "past": (p, b, 2)}
    symbols = bind(specs, shapes)
    assert symbols == {"B": b, "S": s, "P": p}
    assert resolve_shapes(specs, symbols) == shapes


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"x": (2, 5, 16), "m": (2, 9)}, r"m has the shape \[2, 9\]: dimension 'S\+3' must be 8"),
        ({"x": (2, 5, 8), "m": (2, 8)}, "dimension '16' must be 16"),
        ({"x": (2, 5, 16), "m": (3, 8)}, "dimension 'B' must be 2"),
        ({"x": (2, 5), "m": (2, 8)}, "not \\['B', 'S', 16\\]"),
    ],
)
def test_shapes_that_disagree(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    specs = (TensorSpec("x", "float32", ("B", "S", 16)), TensorSpec("m", "int64", ("B", "S+3")))
    with pytest.raises(ValueError, match=message):
        bind(specs, shapes)
