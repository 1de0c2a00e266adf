# SPDX-License-Identifier: Apache-2.0
"""Identity of a model, sizes of its decoder, and places of the images in its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from secateur.bundle.size_limits import DIMENSIONS, MOST_POSITION, MOST_ROWS, check_sizes
from secateur.errors import BadBundle

Ints = NDArray[np.int64]
VISION = "vision"
"""Graph name of the vision encoder for the first image size."""


@dataclass(frozen=True)
class ModelIdentity:
    """A model, and the size (WIDTHxHEIGHT) and number of the images in its prompt.

    `fingerprint` is a hash of its weights and their shapes.
    """

    family: str
    layers: int
    vision_tokens: int
    fingerprint: str
    image_size: str = ""
    images: int = 1


@dataclass(frozen=True)
class View:
    """Vision tokens that are pruned independently of others: an image, or a tile of an image.

    start   first row in the prompt
    tokens  number of tokens, in raster order of `grid` (rows, columns)
    stride  rows of the prompt between the starts of two lines of the grid; 0: lines are consecutive
    """

    start: int
    tokens: int
    grid: tuple[int, int]
    stride: int = 0

    def __post_init__(self) -> None:
        check_sizes("of a view, ", {"start": self.start, "tokens": self.tokens, "stride": self.stride}, MOST_ROWS)
        if min(self.grid) < 1 or self.grid[0] * self.grid[1] != self.tokens:
            raise BadBundle(
                f"a view of {self.tokens} tokens from row {self.start} on does not fit the grid {list(self.grid)}"
            )
        if self.stride and self.stride < self.grid[1]:
            raise BadBundle(
                f"a view with lines of {self.grid[1]} tokens needs a stride of at least that, got {self.stride}"
            )

    @property
    def rows(self) -> list[int]:
        """Row of each token."""
        lines = range(self.start, self.end, self.stride or self.grid[1])
        return [row for line in lines for row in range(line, line + self.grid[1])]

    @property
    def end(self) -> int:
        """Index after the last row."""
        return self.start + (self.grid[0] - 1) * (self.stride or self.grid[1]) + self.grid[1]


@dataclass(frozen=True)
class Layout:
    """The rows of a prompt that are known at export: text and images up to the end of the last image.

    head           token ids of the text rows
    views          views of all images, in the order of their first rows
    images         number of images; all have the same views
    positions      position of every row on each rotary axis; () if rows are counted from 0
    next_position  position of the first row after the layout
    image_size     (height, width) of the canvas that an image is fitted to
    vision         graph name of the vision encoder
    """

    head: tuple[int, ...]
    views: tuple[View, ...]
    images: int = 1
    positions: tuple[tuple[int, ...], ...] = ()
    next_position: int = -1
    image_size: tuple[int, int] = (0, 0)
    vision: str = VISION

    def __post_init__(self) -> None:
        row = 0
        check_sizes("of a prompt, ", {"rows": self.rows}, MOST_ROWS)
        ends = {f"position {p}": p for axis in self.positions for p in (min(axis, default=0), max(axis, default=0))}
        check_sizes("of a prompt, ", ends | {"next_position": self.next_position}, MOST_POSITION, -1)
        for run in self.runs:
            first, row = run[0].start, max(view.end for view in run)
            tokens, starts = sum(view.tokens for view in run), [view.start for view in run]
            if tokens != row - first or len({r for v in run for r in v.rows}) != tokens or starts != sorted(starts):
                raise BadBundle(
                    f"views of {tokens} tokens do not fill rows {first} to {row - 1} consecutively or line by line: "
                    "they overlap, leave out rows, or are in another order"
                )
        if not self.views or row > self.rows:
            raise BadBundle(f"{len(self.views)} views end at row {row}, the prompt has {self.rows} rows")
        shapes = [[(view.grid, view.stride) for view in run] for run in self.runs]
        if not 1 <= self.images <= len(self.views) or shapes != shapes[: len(shapes) // self.images] * self.images:
            raise BadBundle(f"{len(self.views)} views do not belong to {self.images} images of the same size")
        if any(len(axis) != self.rows for axis in self.positions):
            raise BadBundle(f"positions must be given for the {self.rows} rows of the prompt")
        if self.next_position < 0:
            object.__setattr__(self, "next_position", self.rows)
        if not self.positions and self.next_position != self.rows:
            raise BadBundle(f"the next position is {self.next_position}, but must be {self.rows} without positions")

    @property
    def size(self) -> str:
        """The image size as WIDTHxHEIGHT."""
        return f"{self.image_size[1]}x{self.image_size[0]}"

    @property
    def preprocess(self) -> str:
        """File name of the preprocessing steps."""
        return f"{self.vision.replace('vision', 'preprocess')}.json"

    @property
    def image_start(self) -> int:
        """Row of the first vision token."""
        return self.views[0].start

    @property
    def vision_tokens(self) -> int:
        """Number of vision tokens of all images."""
        return sum(view.tokens for view in self.views)

    @property
    def rows(self) -> int:
        """Number of rows before the question."""
        return len(self.head) + self.vision_tokens

    @property
    def grid(self) -> tuple[int, int]:
        """(rows, columns) of the first view."""
        return self.views[0].grid

    @property
    def axes(self) -> int:
        """Number of rotary axes: 3 with M-RoPE, else 1."""
        return max(1, len(self.positions))

    @property
    def counted(self) -> bool:
        """Whether the positions of all rows, including the question, are consecutive on a single axis."""
        axis = self.numbered(self.rows + 1)[0]
        return self.axes == 1 and axis == list(range(axis[0], axis[0] + len(axis)))

    @property
    def image_views(self) -> tuple[View, ...]:
        """Views of one image."""
        return self.views[: len(self.views) // self.images]

    @property
    def image_tokens(self) -> int:
        """Number of vision tokens of one image."""
        return self.vision_tokens // self.images

    @cached_property
    def runs(self) -> tuple[tuple[View, ...], ...]:
        """Views grouped into runs of consecutive rows; views whose lines interleave are in the same run."""
        runs: list[list[View]] = []
        end = 0
        for view in self.views:
            if view.start >= end:
                runs.append([])
            runs[-1].append(view)
            end = max(end, view.end)
        return tuple(map(tuple, runs))

    @property
    def vision_rows(self) -> list[int]:
        """Row of each vision token, in the order of token numbers."""
        return [row for start, tokens in self.spans for row in range(start, start + tokens)]

    @cached_property
    def members(self) -> tuple[Ints, ...]:
        """Token numbers of each view, in raster order of the view (ascending)."""
        found, first = [], 0
        for run in self.runs:
            found += [np.array(view.rows, np.int64) - run[0].start + first for view in run]
            first += sum(view.tokens for view in run)
        return tuple(found)

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """(start, tokens) of each run."""
        return self.pruned(tuple(view.tokens for view in self.views))

    def of_samples(self, indices: Ints) -> Ints:
        """Convert token indices [B*I,k] within an image to indices [B,I*k] within all images of a sample."""
        first = np.arange(self.images)[:, None] * self.image_tokens
        samples, kept = len(indices) // self.images, indices.shape[1]
        return (indices.reshape(samples, self.images, kept) + first).reshape(samples, self.images * kept)

    def ids(self, image: int) -> list[int]:
        """Return the token ids of all rows; `image` is the id of every vision token."""
        ids = [image] * self.rows
        text = iter(self.head)
        for row in self.text_rows():
            ids[row] = next(text)
        return ids

    def numbered(self, rows: int) -> list[list[int]]:
        """Return the positions of the first `rows` rows of a prompt, including the question, on each axis."""
        known = self.positions or (tuple(range(self.rows)),)
        further = range(self.next_position, self.next_position + max(0, rows - self.rows))
        return [[*axis, *further][:rows] for axis in known]

    def positions_used(self, rows: int) -> int:
        """Return the number of positions of a prompt of `rows` rows; with M-RoPE an image has fewer than rows."""
        numbered = self.numbered(rows)  # some models count from 1
        return max(max(axis) for axis in numbered) + 1 - numbered[0][0]

    def text_rows(self) -> Iterator[int]:
        """Yield the text rows before the question."""
        row = 0
        for start, tokens in self.spans:
            yield from range(row, start)
            row = start + tokens
        yield from range(row, self.rows)

    def pruned(self, kept: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """Return (start, tokens) of each run after pruning, with `kept` tokens of each view."""
        counts, dropped, spans = iter(kept), 0, []
        for run in self.runs:
            left = sum(islice(counts, len(run)))
            spans.append((run[0].start - dropped, left))
            dropped += sum(view.tokens for view in run) - left
        return tuple(spans)

    @property
    def features(self) -> Layout:
        """Layout of the views of one image in the encoder, where there is no text."""
        first = zip(self.image_views, self.members, strict=False)
        return Layout((), tuple(replace(view, start=int(numbers[0])) for view, numbers in first))

    def alone(self, view: View) -> Layout:
        """Return the layout of a prompt with only this view, after the text before the first view."""
        start = self.image_start
        chosen = [*range(start), *view.rows]
        positions = self.positions or (tuple(range(self.rows)),)
        return Layout(
            self.head[:start],
            (replace(view, start=start, stride=0),),
            1,
            tuple(tuple(axis[row] for row in chosen) for axis in positions),
            self.next_position,
        )


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the decoder.

    context        maximum number of positions
    vision_width   width of the vision features
    class_token    whether the encoder has a class token
    bidirectional  whether the rows of a prompt also attend to later rows (PaliGemma)
    planes         number of DeepStack planes; plane i is added to the vision rows after decoder layer i (Qwen3-VL)
    """

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    vocabulary: int
    context: int
    vision_width: int
    class_token: bool = True
    bidirectional: bool = False
    planes: int = 0

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in DIMENSIONS}
        check_sizes("", {"planes": sizes.pop("planes")}, DIMENSIONS)
        check_sizes("", sizes, DIMENSIONS, 1)
