# SPDX-License-Identifier: Apache-2.0
"""Where the images stand in a prompt: what a layout says of its rows, against lists of rows written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.artifacts import Layout, View
from secateur.errors import BadBundle

IMAGE = -7


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[int]]:
    """A layout, and for each of its rows the number of its view or -1 for text."""
    grids = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=3))
    images = draw(st.integers(1, 3))
    owner: list[int] = [-1] * draw(st.integers(0, 3))
    views = []
    for number, grid in enumerate(grids * images):
        views.append(View(len(owner), grid[0] * grid[1], grid))
        owner += [number] * views[-1].tokens + [-1] * draw(st.integers(0, 2))
    head = tuple(100 + i for i in range(owner.count(-1)))
    positions: tuple[tuple[int, ...], ...] = ()
    if draw(st.booleans()):
        positions = tuple(tuple(draw(st.integers(0, 50)) for _ in owner) for _ in range(3))
    return Layout(head, tuple(views), images, positions, next_position=60 if positions else -1), owner


@given(layouts())
def test_rows(made: tuple[Layout, list[int]]) -> None:
    layout, owner = made
    vision = [row for row, view in enumerate(owner) if view >= 0]
    assert layout.rows == len(owner) and layout.vision_tokens == len(vision)
    assert layout.vision_rows == vision and layout.image_start == vision[0]
    assert list(layout.text_rows()) == [row for row, view in enumerate(owner) if view < 0]
    ids = layout.ids(IMAGE)
    assert [row for row, token in enumerate(ids) if token == IMAGE] == vision
    assert tuple(token for token in ids if token != IMAGE) == layout.head
    assert layout.image_tokens * layout.images == layout.vision_tokens
    assert layout.image_views * layout.images and len(layout.image_views) * layout.images == len(layout.views)


@given(layouts(), st.integers(0, 4), st.integers(0, 12))
def test_positions_go_on_behind_the_images(made: tuple[Layout, list[int]], question: int, fewer: int) -> None:
    layout, owner = made
    every = layout.numbered(len(owner) + question)
    assert len(every) == layout.axes == (3 if layout.positions else 1)
    first = 60 if layout.positions else len(owner)
    for axis, known in zip(every, layout.positions or [range(len(owner))], strict=True):
        assert axis == [*known, *range(first, first + question)]
    short = max(0, len(owner) - fewer)
    assert layout.numbered(short) == [axis[:short] for axis in every]


@given(layouts(), st.data())
def test_pruned(made: tuple[Layout, list[int]], data: st.DataObject) -> None:
    """The spans are those of a prompt from which rows were really deleted."""
    layout, owner = made
    kept = tuple(data.draw(st.integers(0, view.tokens)) for view in layout.views)
    left, seen = [], [0] * len(kept)
    for view in owner:
        if view >= 0:
            seen[view] += 1
        if view < 0 or seen[view] <= kept[view]:
            left.append(view)
    for number, (start, tokens) in enumerate(layout.pruned(kept)):
        assert tokens == kept[number] == left.count(number)
        assert not tokens or left.index(number) == start
    assert layout.pruned(tuple(v.tokens for v in layout.views)) == tuple((v.start, v.tokens) for v in layout.views)


@given(layouts(), st.data())
def test_a_view_alone(made: tuple[Layout, list[int]], data: st.DataObject) -> None:
    layout, owner = made
    number = data.draw(st.integers(0, len(layout.views) - 1))
    alone = layout.alone(layout.views[number])
    front = owner.index(0)
    chosen = [*range(front), *(row for row, view in enumerate(owner) if view == number)]
    assert alone.head == layout.head[:front] and alone.images == 1
    assert (alone.image_start, alone.grid) == (front, layout.views[number].grid) and alone.rows == len(chosen)
    assert alone.next_position == layout.next_position
    for ours, whole in zip(alone.numbered(alone.rows), layout.numbered(layout.rows), strict=True):
        assert ours == [whole[row] for row in chosen]


def test_indices_of_a_sample_count_over_its_images() -> None:
    layout = Layout((), (View(0, 4, (2, 2)), View(4, 4, (2, 2))), images=2)
    found = layout.of_samples(np.array([[0, 3], [1, 2], [2, 3], [0, 1]]))
    assert found.tolist() == [[0, 3, 5, 6], [2, 3, 4, 5]]


@pytest.mark.parametrize(
    ("positions", "behind", "counted"),
    [
        ((), -1, True),
        (((1, 2, 3, 4, 5),), 6, True),
        (((1, 2, 3, 4, 5),), 5, False),
        (((0, 1, 1, 2, 3),), 4, False),
        (((0, 1, 2, 3, 4),) * 3, 5, False),
    ],
)
def test_positions_that_are_a_count(positions: tuple[tuple[int, ...], ...], behind: int, counted: bool) -> None:
    assert Layout((9,), (ONE,), positions=positions, next_position=behind).counted is counted


def test_names_of_sizes() -> None:
    first = Layout((1,), (View(1, 4, (2, 2)),), image_size=(448, 672))
    assert (first.size, first.vision, first.preprocess) == ("672x448", "vision", "preprocess.json")
    other = Layout((1,), (View(1, 4, (2, 2)),), image_size=(448, 672), vision="vision-672x448")
    assert other.preprocess == "preprocess-672x448.json"


ONE = View(1, 4, (2, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": ()}, "0 views end at row 0 of a prompt of 1 rows"),
        ({"views": (View(3, 4, (2, 2)),)}, "1 views end at row 7 of a prompt of 5 rows"),
        ({"views": (ONE, View(4, 4, (2, 2)))}, "the view from row 4 on overlaps the one before, which ends at row 5"),
        ({"views": (ONE, View(5, 2, (1, 2))), "images": 2}, "2 views are not those of 2 images of the same size"),
        ({"images": 0}, "1 views are not those of 0 images"),
        ({"positions": ((0, 1, 2),)}, "positions are given for other rows than the 5 of the prompt"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadBundle, match=message):
        Layout(**({"head": (9,), "views": (ONE,)} | fields))


@pytest.mark.parametrize(("start", "tokens", "grid"), [(-1, 4, (2, 2)), (0, 4, (2, 3)), (0, 0, (0, 2))])
def test_a_view_has_a_grid(start: int, tokens: int, grid: tuple[int, int]) -> None:
    with pytest.raises(BadBundle, match=f"a view of {tokens} tokens from row {start} on has no grid"):
        View(start, tokens, grid)
