# SPDX-License-Identifier: Apache-2.0
"""Vision tokens of an image of a fixed size in LLaVA-NeXT: the whole image, then its tiles joined line by line.

The tiles are joined to one grid, padding rows and columns are cut off, and a learned "newline" is added to the end of
each line. The lines interleave the tiles row by row: each tile is a view, and the distance between two of its lines is
the width of the grid. A newline belongs to the tile at the right end of its line.

transformers adds newlines after the projector. Here they are added before it, as zeros with a flag in an extra channel,
so that the projector works row by row and a gate may be placed before it.

    features       [B, N, Dv + 1]  rows of the whole image, then the joined grid with its newlines; flag: last channel
    vision_tokens  [B, N, D]
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from secateur.bundle.layout import View
from secateur.checkpoints.streaming import value
from secateur.errors import BadModel
from secateur.vision.encoder import VisionEncoder
from secateur.vision.native_sizes import shown
from secateur.vision.tiles import Tiles

Size = tuple[int, int]


@dataclass(frozen=True)
class Arrangement:
    """Tiles, views and rows of one image. Tile 0 is the whole image; the others follow in raster order.

    tiles  number of tiles, the whole image included
    views  the whole image, then the unpadded part of each tile, in units of vision tokens
    rows   for each vision token, the index of its patch among those of all tiles; -1: a newline
    """

    tiles: int
    views: tuple[View, ...]
    rows: tuple[int, ...]


def arrangement(bucket: Size, pinpoints: Sequence[Sequence[int]], edge: int, side: int) -> Arrangement:
    """Return the arrangement of an image of height and width `bucket`.

    Args:
        pinpoints: (height, width) of the canvases that the model may choose from.
        edge: of a tile, in pixels.
        side: of a tile, in patches.

    Raises:
        BadModel: the canvas has no whole tiles, or the image is so narrow that no patch of it is left.
    """
    canvas = select_best_resolution(bucket, [list(p) for p in pinpoints])
    if canvas is None or any(length % edge for length in canvas):
        raise BadModel(
            f"an image of {shown(bucket)} is shown on a canvas of {shown(canvas) if canvas else 'no size'}, which is "
            f"not made of tiles of {edge} x {edge}; correct image_grid_pinpoints in config.json"
        )
    down, across = (length // edge for length in canvas)
    tiles = torch.arange(side * side * down * across).reshape(down, across, side, side) + side * side
    joined = unpad_image(tiles.transpose(1, 2).reshape(1, down * side, across * side), bucket)[0]
    if not joined.numel():
        raise BadModel(
            f"an image of {shown(bucket)} is so narrow that no patch of its tiles is left; "
            f"use {shown(canvas)}, which fills the same tiles"
        )
    rows = (*range(side * side), *F.pad(joined, (0, 1), value=-1).flatten().tolist())
    return Arrangement(
        1 + down * across, (View(0, side * side, (side, side)), *_tiles(joined // side**2, side**2)), rows
    )


def _tiles(joined: Tensor, start: int) -> Iterator[View]:
    """Yield the unpadded part of each tile; `joined` contains the tile number of each patch, without newlines."""
    heights, widths = (line.unique_consecutive(return_counts=True)[1].tolist() for line in (joined[:, 0], joined[0]))
    widths[-1] += 1  # the newlines
    stride = sum(widths) if len(widths) > 1 else 0
    for height in heights:
        at = start
        for width in widths:
            yield View(at, height * width, (height, width), stride)
            at += width
        start += height * sum(widths)


def single(side: int) -> Arrangement:
    """Return the arrangement of one of several images in LLaVA-OneVision: one tile and a newline, each a view."""
    whole = View(0, side * side, (side, side))
    return Arrangement(1, (whole, View(whole.end, 1, (1, 1))), (*range(whole.end), -1))


class AnyRes(nn.Module):
    """Features and scores of all rows of an image; the scores of a newline are 0.

    Raises:
        BadModel: a score for merging rows, or one that the encoder does not have.
    """

    places: Tensor
    newline: Tensor

    def __init__(self, vision: VisionEncoder, arranged: Arrangement, reads: tuple[str, ...] = ()) -> None:
        super().__init__()
        if any(name.startswith("patch_key") for name in reads):
            raise BadModel(
                "this model puts a newline after each line of patches, and a method that merges vision tokens by "
                "their keys would merge newlines with patches; use a method that selects, such as btp or fopru"
            )
        self.vision = Tiles(vision)
        width = vision.tower.config.hidden_size * max(1, len(vision.feature_layers))
        newline = arranged.tiles * arranged.views[0].tokens
        places = torch.tensor([newline if row < 0 else row for row in arranged.rows])
        self.register_buffer("places", places, persistent=False)
        self.register_buffer("newline", F.one_hot(torch.tensor([[width]]), width + 1).float(), persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """pixel_values [B, T, 3, h, w] fp32 -> features [B, N, Dv + 1] in the model's dtype, and scores [B, N]."""
        seen = self.vision(pixel_values)
        features, *scores = seen if isinstance(seen, tuple) else (seen,)
        newline = self.newline.to(features.dtype).expand(features.shape[0], -1, -1)
        rows = torch.cat([F.pad(features, (0, 1)), newline], dim=1).index_select(1, self.places)
        if not scores:
            return rows
        return rows, *(F.pad(score, (0, 1)).index_select(1, self.places) for score in scores)


class AnyResProjector(nn.Module):
    """The model's projector for patches; newline rows become the learned newline.

    Args:
        projector: rows [..., Dv] -> [..., D].
        newline: [D].
    """

    def __init__(self, projector: nn.Module, newline: nn.Parameter) -> None:
        super().__init__()
        self.projector = projector
        self.newline = newline

    def forward(self, features: Tensor) -> Tensor:
        """features [B, n, Dv + 1] -> vision_tokens [B, n, D]."""
        newline = value(self.newline)  # the module that owns it does not run here, so its hook does not read it
        return torch.where(features[..., -1:] > 0.5, newline, self.projector(features[..., :-1]))
