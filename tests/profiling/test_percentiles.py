# SPDX-License-Identifier: Apache-2.0
"""The percentile rule of trtexec, compared with counting and with numpy."""

from __future__ import annotations

import numpy as np
import pytest

from secateur.profiling.results import Spread, percentile, spread, total


@pytest.mark.parametrize("p", [50, 90, 95, 99])
def test_at_or_next_to_the_percentile_of_numpy(p: int) -> None:
    for n in range(1, 1500):
        exact = int(np.percentile(np.arange(n), p, method="inverted_cdf"))
        assert percentile(range(n), p) in (exact, exact + 1)


@pytest.mark.parametrize(("n", "p", "index"), [(1, 99, 0), (10, 90, 8), (100, 99, 99), (200, 99, 198), (4, 50, 1)])
def test_percentiles_are_computed_in_32_bits(n: int, p: int, index: int) -> None:
    """In 64 bits, p90 of ten values would be the last one; exactly, p99 of a hundred would be the 99th."""
    assert percentile(range(n), p) == index


def test_spread_and_sum() -> None:
    assert spread([3.0, 1.0, 2.0]) == Spread(2.0, 3.0, 3.0, 3.0, float(np.std([3.0, 1.0, 2.0])) / 2)
    assert spread([0.0]).variation == 0
    assert total([spread([1.0, 2.0, 3.0]), spread([10.0])]) == Spread(12.0, None, None, 13.0, None)
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)
