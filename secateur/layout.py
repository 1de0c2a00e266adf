# SPDX-License-Identifier: Apache-2.0
"""The model that a schedule is for, how large its decoder is, and where the images stand in its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from secateur.errors import BadBundle

VISION = "vision"
"""Name of the vision encoder's graph for the first image size."""


@dataclass(frozen=True)
class ModelIdentity:
    """The model a schedule was made for, and the size (WIDTHxHEIGHT) and number of the images in its prompt.

    `fingerprint` is a hash of its weights and shape.
    """

    family: str
    layers: int
    vision_tokens: int
    fingerprint: str
    image_size: str = ""
    images: int = 1


@dataclass(frozen=True)
class View:
    """One span of vision tokens that is pruned by itself: an image, or a tile of one.

    start   its first row in the prompt
    tokens  as many rows, in raster order of `grid`, (rows, columns)
    """

    start: int
    tokens: int
    grid: tuple[int, int]

    def __post_init__(self) -> None:
        if self.start < 0 or min(self.grid) < 1 or self.grid[0] * self.grid[1] != self.tokens:
            raise BadBundle(f"a view of {self.tokens} tokens from row {self.start} on has no grid {list(self.grid)}")

    @property
    def end(self) -> int:
        """The row behind its last one."""
        return self.start + self.tokens


@dataclass(frozen=True)
class Layout:
    """The rows of a prompt that are known at export: text and images up to the end of the last image.

    head           token ids of the text rows, in front of the views and between them
    views          of all images, in the order of their rows
    images         each of them has as many views, of the same sizes
    positions      () if rows count from 0, else the position of every row on each rotary axis
    next_position  that of the first row behind
    image_size     (height, width) of the canvas that an image is fitted to
    vision         name of the vision encoder's graph
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
        for view in self.views:
            if view.start < row:
                raise BadBundle(f"the view from row {view.start} on overlaps the one before, which ends at row {row}")
            row = view.end
        if not self.views or row > self.rows:
            raise BadBundle(f"{len(self.views)} views end at row {row} of a prompt of {self.rows} rows")
        shapes = [view.grid for view in self.views]
        if self.images < 1 or shapes != shapes[: len(shapes) // self.images] * self.images:
            raise BadBundle(f"{len(self.views)} views are not those of {self.images} images of the same size")
        if any(len(axis) != self.rows for axis in self.positions):
            raise BadBundle(f"positions are given for other rows than the {self.rows} of the prompt")
        if self.next_position < 0:
            object.__setattr__(self, "next_position", self.rows)
        if not self.positions and self.next_position != self.rows:
            raise BadBundle(f"the next position is {self.next_position}, behind {self.rows} rows that count from 0")

    @property
    def size(self) -> str:
        """The image size as users write it, WIDTHxHEIGHT."""
        return f"{self.image_size[1]}x{self.image_size[0]}"

    @property
    def preprocess(self) -> str:
        """File of the steps from an image to the pixels that the encoder takes."""
        return f"{self.vision.replace('vision', 'preprocess')}.json"

    @property
    def image_start(self) -> int:
        """Row of the first vision token."""
        return self.views[0].start

    @property
    def vision_tokens(self) -> int:
        """Vision tokens of all images together."""
        return sum(view.tokens for view in self.views)

    @property
    def rows(self) -> int:
        """Rows up to the question."""
        return len(self.head) + self.vision_tokens

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the first view."""
        return self.views[0].grid

    @property
    def axes(self) -> int:
        """Rotary axes: 3 with M-RoPE, else 1."""
        return max(1, len(self.positions))

    @property
    def counted(self) -> bool:
        """Whether the positions of all rows, the question's included, are consecutive numbers on a single axis."""
        axis = self.numbered(self.rows + 1)[0]
        return self.axes == 1 and axis == list(range(axis[0], axis[0] + len(axis)))

    @property
    def image_views(self) -> tuple[View, ...]:
        """Those of one image."""
        return self.views[: len(self.views) // self.images]

    @property
    def image_tokens(self) -> int:
        """Vision tokens of one image."""
        return self.vision_tokens // self.images

    @property
    def vision_rows(self) -> list[int]:
        """Row of each vision token."""
        return [row for view in self.views for row in range(view.start, view.end)]

    def of_samples(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices [B*I,k] of tokens within their image as indices [B,I*k] within all images of a sample."""
        first = np.arange(self.images)[:, None] * self.image_tokens
        return (indices.reshape(-1, self.images, indices.shape[1]) + first).reshape(-1, self.images * indices.shape[1])

    def ids(self, image: int) -> list[int]:
        """Token ids of all rows; `image` stands for every vision token."""
        ids = [image] * self.rows
        text = iter(self.head)
        for row in self.text_rows():
            ids[row] = next(text)
        return ids

    def numbered(self, rows: int) -> list[list[int]]:
        """Positions of the first `rows` rows of a prompt, the question's included, on each axis."""
        known = self.positions or (tuple(range(self.rows)),)
        behind = range(self.next_position, self.next_position + max(0, rows - self.rows))
        return [[*axis, *behind][:rows] for axis in known]

    def text_rows(self) -> Iterator[int]:
        """Rows up to the question that are text."""
        row = 0
        for view in self.views:
            yield from range(row, view.start)
            row = view.end
        yield from range(row, self.rows)

    def pruned(self, kept: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
        """(start, tokens) of each view when `kept` of its tokens, and all text, are left."""
        dropped, spans = 0, []
        for view, count in zip(self.views, kept, strict=True):
            spans.append((view.start - dropped, count))
            dropped += view.tokens - count
        return tuple(spans)

    def alone(self, view: View) -> Layout:
        """A prompt with this view only, behind the text that stands in front of the first one."""
        start = self.image_start
        chosen = [*range(start), *range(view.start, view.end)]
        positions = self.positions or (tuple(range(self.rows)),)
        return Layout(
            self.head[:start],
            (replace(view, start=start),),
            1,
            tuple(tuple(axis[row] for row in chosen) for axis in positions),
            self.next_position,
        )


@dataclass(frozen=True)
class Dimensions:
    """Sizes of the decoder; `context` is the largest position it was made for.

    vision_width   width of the vision features
    class_token    whether the encoder has a class token
    bidirectional  whether the rows of a prompt see those behind them too (PaliGemma)
    planes         DeepStack planes: number i is added to the vision rows behind decoder layer i (Qwen3-VL)
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
        for name, size in vars(self).items():
            least = 0 if name == "planes" else 1
            if type(size) is int and size < least:
                raise BadBundle(f"{name} is {size}; it must be at least {least}")
