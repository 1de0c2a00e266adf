# SPDX-License-Identifier: Apache-2.0
"""Rows of a layout, compared with explicit lists of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.bundle.layout import Layout, View
from secateur.bundle.strict_json import decode
from secateur.errors import BadBundle

IMAGE = -7


@st.composite
def layouts(draw: st.DrawFn) -> tuple[Layout, list[int]]:
    """Draw a layout, and the view number of each row, -1 for text. Views of a run interleave line by line."""
    side = st.integers(1, 3)
    runs = draw(st.lists(st.tuples(side, st.lists(side, min_size=1, max_size=3)), min_size=1, max_size=3))
    images = draw(st.integers(1, 3))
    owner: list[int] = [-1] * draw(st.integers(0, 3))
    views = list[View]()
    for height, widths in runs * images:
        start, line = len(owner), list[int]()
        for width in widths:
            stride = sum(widths) if len(widths) > 1 else 0
            line += [len(views)] * width
            views.append(View(start, height * width, (height, width), stride))
            start += width
        owner += line * height + [-1] * draw(st.integers(0, 2))
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
def test_positions_continue_after_the_images(made: tuple[Layout, list[int]], question: int, fewer: int) -> None:
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
    """The spans equal those of a prompt after deleting rows."""
    layout, owner = made
    kept = tuple(data.draw(st.integers(0, view.tokens)) for view in layout.views)
    left, seen = [], [0] * len(kept)
    for view in owner:
        if view >= 0:
            seen[view] += 1
        if view < 0 or seen[view] <= kept[view]:
            left.append(view)
    number = 0
    for (start, tokens), run in zip(layout.pruned(kept), layout.runs, strict=True):
        own = range(number, number + len(run))
        rows = [row for row, view in enumerate(left) if view in own]
        assert tokens == sum(kept[view] for view in own) and rows == list(
            range(start, start + tokens) if tokens else ()
        )
        number += len(run)
    assert number == len(layout.views)
    assert [row for start, tokens in layout.spans for row in range(start, start + tokens)] == layout.vision_rows


@given(layouts())
def test_members(made: tuple[Layout, list[int]]) -> None:
    """Vision tokens are numbered in the order of rows, not of views."""
    layout, owner = made
    tokens = [view for view in owner if view >= 0]
    for number, (view, own) in enumerate(zip(layout.views, layout.members, strict=True)):
        assert view.rows == [row for row, found in enumerate(owner) if found == number]
        assert own.tolist() == [token for token, found in enumerate(tokens) if found == number]
    image = tokens[: layout.image_tokens]
    of_image = layout.features
    assert of_image.rows == len(image) and not of_image.head
    assert [view.rows for view in of_image.views] == [
        [token for token, found in enumerate(image) if found == number] for number in range(len(layout.image_views))
    ]


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
    assert layout.of_samples(np.zeros((4, 0), np.int64)).shape == (2, 0), "a gate in the encoder that keeps nothing"


@pytest.mark.parametrize(
    ("positions", "next_position", "counted"),
    [
        ((), -1, True),
        (((1, 2, 3, 4, 5),), 6, True),
        (((1, 2, 3, 4, 5),), 5, False),
        (((0, 1, 1, 2, 3),), 4, False),
        (((0, 1, 2, 3, 4),) * 3, 5, False),
    ],
)
def test_consecutive_positions_are_detected(
    positions: tuple[tuple[int, ...], ...], next_position: int, counted: bool
) -> None:
    assert Layout((9,), (ONE,), positions=positions, next_position=next_position).counted is counted


def test_names_of_sizes() -> None:
    first = Layout((1,), (View(1, 4, (2, 2)),), image_size=(448, 672))
    assert (first.size, first.vision, first.preprocess) == ("672x448", "vision", "preprocess.json")
    other = Layout((1,), (View(1, 4, (2, 2)),), image_size=(448, 672), vision="vision-672x448")
    assert other.preprocess == "preprocess-672x448.json"


ONE = View(1, 4, (2, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"views": ()}, "0 views end at row 0, the prompt has 1 rows"),
        ({"views": (View(3, 4, (2, 2)),)}, "1 views end at row 7, the prompt has 5 rows"),
        ({"views": (ONE, View(4, 4, (2, 2)))}, "views of 8 tokens do not fill rows 1 to 7 consecutively"),
        ({"views": (View(5, 4, (2, 2)), ONE)}, "rows 5 to 8 .*they overlap, leave out rows, or are in another order"),
        ({"views": (View(1, 4, (2, 2), 3),)}, "views of 4 tokens do not fill rows 1 to 5"),
        ({"views": (View(1, 4, (2, 2), 4), View(3, 4, (2, 2), 3))}, "views of 8 tokens do not fill rows 1 to 7"),
        ({"views": (View(1, 4, (2, 2), 3), View(2, 2, (2, 1), 3))}, "views of 6 tokens do not fill rows 1 to 5"),
        ({"views": (View(1, 4, (2, 2), 4), View(3, 4, (2, 2), 4)), "images": 2}, "do not belong to 2 images"),
        ({"views": (ONE, View(5, 2, (1, 2))), "images": 2}, "2 views do not belong to 2 images of the same size"),
        ({"images": 0}, "1 views do not belong to 0 images"),
        ({"positions": ((0, 1, 2),)}, "positions must be given for the 5 rows of the prompt"),
    ],
)
def test_inconsistent_layouts_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BadBundle, match=message):
        Layout(**({"head": (9,), "views": (ONE,)} | fields))


@pytest.mark.parametrize(("start", "tokens", "grid"), [(0, 4, (2, 3)), (0, 0, (0, 2))])
def test_a_view_has_a_grid(start: int, tokens: int, grid: tuple[int, int]) -> None:
    with pytest.raises(BadBundle, match=f"a view of {tokens} tokens from row {start} on does not fit the grid"):
        View(start, tokens, grid)


@pytest.mark.parametrize("stride", [1, 2])
def test_lines_of_a_view_do_not_overlap(stride: int) -> None:
    with pytest.raises(BadBundle, match=f"lines of 3 tokens needs a stride of at least that, got {stride}"):
        View(0, 6, (2, 3), stride)


def test_a_view_of_an_older_bundle() -> None:
    """Without a stride, lines are consecutive."""
    assert decode(View, {"start": 1, "tokens": 4, "grid": [2, 2]}) == ONE
    with pytest.raises(ValueError, match="view.stride is 2.5, not an integer"):
        decode(View, {"start": 1, "tokens": 4, "grid": [2, 2], "stride": 2.5})
