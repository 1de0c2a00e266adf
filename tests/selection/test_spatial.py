# SPDX-License-Identifier: Apache-2.0
"""Points spread over the token grid."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from secateur.selection.spatial import lattice, spatial_points


def test_spatial_constants() -> None:
    """Points of the released code, from the authors' rule on a 24 x 24 grid."""
    manhattan = spatial_points("manhattan", (24, 24), 144)
    assert manhattan[:12] == (0, 575, 23, 299, 552, 36, 186, 149, 288, 425, 438, 564)
    assert digest(manhattan) == "c9ebef2b95c669fd8dca15200fcdf6c9a8990bda97987da03046d2cad14692a4"
    euclidean = spatial_points("euclidean", (24, 24), 144)
    assert euclidean[:6] == (0, 575, 23, 552, 275, 310)
    assert digest(euclidean) == "bbddd3314ee90c7196a5289e6e713fdbe146abe01993bdb1532b1b3c1a6042e4"
    assert lattice((24, 24), 144) == tuple(24 * y + x for y in range(0, 24, 2) for x in range(0, 24, 2))


def digest(points: Sequence[int]) -> str:
    return hashlib.sha256(np.sort(np.array(points)).astype("<i4").tobytes()).hexdigest()


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_spatial_points_are_distinct(height: int, width: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, height * width))
    for pattern in ("manhattan", "euclidean", "lattice"):
        points = spatial_points(pattern, (height, width), count)
        assert len(set(points)) == count and all(0 <= p < height * width for p in points)
        if pattern == "lattice" and count:
            assert points[0] == 0 and set(lattice((height, width), count)) <= set(points)
