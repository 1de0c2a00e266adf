# SPDX-License-Identifier: Apache-2.0
"""Rows of a prompt with several views, compared with explicit lists of rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.layout import Layout, View
from secateur.runtime.decoder_inputs import TokenBatch

PAD, IMAGE_ROWS = 0, [2, 3, 4, 5, 7, 8]
VIEWS = (View(2, 4, (2, 2)), View(7, 2, (1, 2)))
HEAD = (11, 12, 13, 14)
PLAIN = Layout(HEAD, VIEWS)
AXES = tuple(tuple(10 * axis + row // 2 for row in range(10)) for axis in range(3))
TURNED = Layout(HEAD, VIEWS, positions=AXES, next_position=40)
QUESTIONS = [[21, 22, 23], [31]]


def listed(layout: Layout, question: list[int]) -> tuple[list[int], list[list[int]]]:
    """Return the ids of a prompt, padded to the longest question, and its positions on each axis."""
    ids = [11, 12, PAD, PAD, PAD, PAD, 13, PAD, PAD, 14, *question]
    ids += [PAD] * (13 - len(ids))
    if not layout.positions:
        return ids, [list(range(13))]
    return ids, [[*axis, 40, 41, 42] for axis in AXES]


@pytest.mark.parametrize("layout", [PLAIN, TURNED], ids=["counted", "three axes"])
def test_a_prompt(layout: Layout) -> None:
    rows = TokenBatch.prompt(layout, QUESTIONS, PAD)
    positions = rows.position_ids if layout.positions else rows.position_ids[None]
    assert positions.shape == (layout.axes, 2, 13)
    for b, question in enumerate(QUESTIONS):
        ids, axes = listed(layout, question)
        assert rows.input_ids[b].tolist() == ids
        assert [axis.tolist() for axis in positions[:, b]] == axes
        length = 10 + len(question)
        assert rows.attention_mask[b].tolist() == [1] * length + [0] * (13 - length)
        assert (rows.last_index[b], rows.lengths[b]) == (length - 1, length)


@pytest.mark.parametrize("layout", [PLAIN, TURNED], ids=["counted", "three axes"])
@pytest.mark.parametrize("compact", [False, True])
@given(data=st.data())
def test_a_prompt_without_dropped_tokens(layout: Layout, compact: bool, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 6))
    kept = [sorted(data.draw(st.permutations(range(6)))[:count]) for _ in QUESTIONS]
    rows = TokenBatch.prompt(layout, QUESTIONS, PAD)
    left = rows.without(layout, np.array(kept, np.int64).reshape(2, count), compact)
    positions = left.position_ids if layout.positions else left.position_ids[None]
    for b, question in enumerate(QUESTIONS):
        ids, axes = listed(layout, question)
        stay = [row for row in range(13) if row not in IMAGE_ROWS or IMAGE_ROWS.index(row) in kept[b]]
        assert left.input_ids[b].tolist() == [ids[row] for row in stay]
        for found, axis in zip(positions[:, b], axes, strict=True):
            assert found.tolist() == (axis[: len(stay)] if compact else [axis[row] for row in stay])
        length = 10 + len(question) - (6 - count)
        assert left.attention_mask[b].tolist() == [1] * length + [0] * (len(stay) - length)
        assert left.last_index[b] == length - 1
        assert left.lengths[b] == 10 + len(question), "dropped rows count: generated tokens continue after them"
