# SPDX-License-Identifier: Apache-2.0
"""Symbolic dimensions of a TensorSpec, which are numbers, or sums of numbers and symbols such as "P+S" or "S-72"."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cache

from secateur.bundle.manifest import TensorSpec

_SUM = re.compile(r"[+-]?\w+(?:[+-]\w+)*", re.ASCII)
_TERM = re.compile(r"([+-]?)(\w+)", re.ASCII)


@cache
def terms(dimension: str) -> tuple[tuple[int, int | str], ...]:
    """Return the (sign, number or symbol) terms of a sum.

    Raises:
        ValueError: `dimension` is not such a sum.
    """
    text = dimension.replace(" ", "")
    if not _SUM.fullmatch(text):
        raise ValueError(f"dimension '{dimension}' is not a sum of numbers and symbols")
    found: list[tuple[int, int | str]] = []
    for sign, name in _TERM.findall(text):
        if name[0].isdigit() and not name.isdigit():
            raise ValueError(f"dimension '{dimension}' has the term '{name}', which is neither a number nor a symbol")
        found.append((-1 if sign == "-" else 1, int(name) if name.isdigit() else name))
    return tuple(found)


def resolve(dimension: int | str, symbols: Mapping[str, int]) -> int:
    """Return the size of `dimension` for the given symbols.

    Raises:
        ValueError: a symbol has no value, or the size is negative.
    """
    if isinstance(dimension, int):
        return dimension
    size = 0
    for sign, term in terms(dimension):
        if isinstance(term, str):
            if term not in symbols:
                raise ValueError(f"dimension '{dimension}' needs '{term}', which no input defines")
            term = symbols[term]
        size += sign * term
    if size < 0:
        raise ValueError(f"dimension '{dimension}' is {size}; a size is at least 0")
    return size


def resolve_shapes(specs: Iterable[TensorSpec], symbols: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each spec by name, for the given symbols."""
    shapes: dict[str, tuple[int, ...]] = {}
    known: dict[tuple[int | str, ...], tuple[int, ...]] = {}
    for spec in specs:
        # This runs for every token, and tensors of all layers have the same shapes.
        if spec.shape not in known:
            known[spec.shape] = tuple(resolve(dimension, symbols) for dimension in spec.shape)
        shapes[spec.name] = known[spec.shape]
    return shapes


def bind(specs: Iterable[TensorSpec], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the values of the symbols for the given tensor shapes, and check every dimension.

    Raises:
        ValueError: a rank or a dimension does not match; names the tensor, the dimension and the sizes.
    """
    symbols: dict[str, int] = {}
    later: list[tuple[str, int | str, int]] = []
    seen: set[tuple[tuple[int | str, ...], tuple[int, ...]]] = set()
    for spec in specs:
        shape = shapes[spec.name]
        if (spec.shape, shape) in seen:
            continue
        seen.add((spec.shape, shape))
        if len(shape) != len(spec.shape):
            raise ValueError(f"{spec.name} has the shape {list(shape)}, not {list(spec.shape)}")
        for dimension, size in zip(spec.shape, shape, strict=True):
            if isinstance(dimension, str) and dimension.isidentifier() and dimension not in symbols:
                symbols[dimension] = size
            else:
                later.append((spec.name, dimension, size))
    for name, dimension, size in later:
        if (wanted := resolve(dimension, symbols)) != size:
            raise ValueError(f"{name} has the shape {list(shapes[name])}: dimension '{dimension}' must be {wanted}")
    return symbols
