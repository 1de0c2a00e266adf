# SPDX-License-Identifier: Apache-2.0
"""Vision encoders of Qwen2-VL, Qwen2.5-VL and Qwen3-VL at a fixed size of the image.

transformers runs the patches of all images as one sequence, split by lengths that are inputs. Here images are a batch,
and everything that depends on the grid is a constant: the order of the tokens, their rotary angles, the windows.
Weights, norms, MLPs and mergers are the model's own modules.

B images, N tokens per image, p = m * m patches per token, Dv width of a patch, D width of the decoder.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, matmul, nn
from transformers import PreTrainedModel
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from secateur.errors import BadModel, BadSchedule
from secateur.vision.downsampled import centres, resize_matrix
from secateur.vision.encoder import Heads, parsed, score


class WindowSpan(NamedTuple):
    """Consecutive windows of one size: patch rows [first, first + windows * size)."""

    first: int
    windows: int
    size: int

    @property
    def rows(self) -> int:
        return self.windows * self.size

    def of(self, patches: Tensor) -> Tensor:
        """Return the rows of [B, rows, ...] in these windows, as [B * windows, size, ...]."""
        return patches[:, self.first : self.first + self.rows].reshape(-1, self.size, *patches.shape[2:])


def windows(shape: Tensor, merge: int, window_size: int, patch_size: int) -> tuple[Tensor, list[WindowSpan]]:
    """Return the order of the tokens, window by window, and the spans of their patches, largest windows first.

    Windows are grouped by size into batches, so that none needs a mask. An image that is not a multiple of the window
    has smaller windows at its right edge, lower edge and corner: four sizes at most.

    shape is transformers' [[1, rows, columns]] of patches; window_size and patch_size are in pixels. A token is a
    square of merge x merge patches.
    """
    index, ends = get_vision_window_index(shape, merge, window_size, patch_size)
    bounds = (ends // merge**2).tolist()
    runs = sorted((index[a:b] for a, b in zip(bounds, bounds[1:], strict=False)), key=len, reverse=True)
    spans, first = list[WindowSpan](), 0
    for size in sorted({len(run) for run in runs}, reverse=True):
        spans.append(WindowSpan(first, sum(len(run) == size for run in runs), size * merge**2))
        first += spans[-1].rows
    return torch.cat(runs), spans


class QwenVisionEncoder(nn.Module):
    """Vision encoder: patches of the last layer, concatenated per token; DeepStack planes; scores of tokens.

    Args:
        tower: the vision encoder of a Qwen2-VL, Qwen2.5-VL or Qwen3-VL.
        grid: rows and columns of tokens.
        reads: scores to return, named as in `selection.selector.Selector`. In a windowed layer, patches of different
            windows do not attend to each other.

    Raises:
        BadModel: a score that this encoder does not have.
    """

    tower: Any
    cos: Tensor
    sin: Tensor
    order: Tensor
    back: Tensor
    taps: Tensor
    shares: Tensor

    def __init__(self, tower: PreTrainedModel, grid: tuple[int, int], reads: tuple[str, ...] = ()) -> None:
        super().__init__()
        config: Any = tower.config
        self.tower = tower
        self.grid, self.merge = grid, int(config.spatial_merge_size)
        self.tokens, self.patches = grid[0] * grid[1], self.merge**2
        self.depth = len(self.tower.blocks)
        self.reads = tuple(parsed(name, self.depth, class_token=False) for name in reads)
        self.planes = [int(layer) for layer in getattr(config, "deepstack_visual_indexes", ())]
        shape = torch.tensor([[1, grid[0] * self.merge, grid[1] * self.merge]])
        order, within = torch.arange(self.tokens), [WindowSpan(0, 1, self.tokens * self.patches)]
        self.spans = [within] * self.depth
        if hasattr(config, "fullatt_block_indexes"):
            order, split = windows(shape, self.merge, config.window_size, config.patch_size)
            self.spans = [within if i in config.fullatt_block_indexes else split for i in range(self.depth)]
        self.reordered = not torch.equal(order, torch.arange(self.tokens))
        self._constant("order", order)
        self._constant("back", torch.argsort(order))
        angles = self.tower.rotary_pos_emb(order, get_vision_position_ids(shape, self.merge))
        for name, table in zip(("cos", "sin"), angles, strict=True):
            self._constant(name, table.unflatten(0, (self.tokens, self.patches))[order].flatten(0, 1)[:, None])
        if hasattr(self.tower, "pos_embed"):
            taps, shares = get_vision_interpolation_indices_and_weights(
                shape,
                num_grid_per_side=self.tower.num_grid_per_side,
                mode=self.tower.interpolation_mode,
                align_corners=self.tower.interpolation_align_corners,
                spatial_merge_size=self.merge,
            )
            self._constant("taps", taps)
            self._constant("shares", shares[:, :, None])

    def _constant(self, name: str, value: Tensor) -> None:
        self.register_buffer(name, value, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor | tuple[Tensor, ...]:
        """pixel_values [B, 3, h, w] fp32 -> features [B, N, p * Dv] in the model's dtype, planes [B, N, D], scores.

        A token's `received` and `given` are the sum over its patches, its `patch_key` is their mean.
        """
        rows = self._embedded(pixel_values)
        planes, seen = dict[int, Tensor](), list[list[Heads]]()
        for number, block in enumerate(self.tower.blocks):
            mixed, heads = self._attend(block.attn, block.norm1(rows), self.spans[number])
            seen.append(heads)
            rows = rows + mixed
            rows = rows + block.mlp(block.norm2(rows))
            if number in self.planes:
                place = self.planes.index(number)
                planes[place] = merged(self.tower.deepstack_merger_list[place], self._in_order(rows), self.patches)
        features = self._in_order(rows)
        if not planes and not self.reads:
            return features
        scores = (self._scored(kind, seen[i], self.spans[i]) for kind, i in self.reads)
        return features, *(planes[i] for i in sorted(planes)), *scores

    def _embedded(self, pixel_values: Tensor) -> Tensor:
        """[B, 3, h, w] -> [B, N * p, Dv], tokens in `order`.

        The patch embedding is a 3-D convolution, and an image is a video of equal frames.
        """
        convolution = self.tower.patch_embed.proj
        pixels = pixel_values.to(convolution.weight.dtype)
        film = pixels[:, :, None].expand(-1, -1, convolution.kernel_size[0], -1, -1)
        patches = convolution(film).squeeze(2)
        width, m = patches.shape[1], self.merge
        squares = patches.reshape(-1, width, self.grid[0], m, self.grid[1], m).permute(0, 2, 4, 3, 5, 1)
        rows: Tensor = squares.reshape(-1, self.tokens * self.patches, width)
        if hasattr(self.tower, "pos_embed"):
            positions = (self.tower.pos_embed(self.taps) * self.shares).sum(1)
            rows = rows + positions.to(rows.dtype)
        if not self.reordered:
            return rows
        tokens = torch.unflatten(rows, 1, (self.tokens, self.patches))
        return tokens.index_select(1, self.order).flatten(1, 2)

    def _in_order(self, rows: Tensor) -> Tensor:
        """[B, N * p, x] -> [B, N, p * x], tokens in raster order."""
        tokens = rows.reshape(-1, self.tokens, self.patches * rows.shape[2])
        return tokens.index_select(1, self.back) if self.reordered else tokens

    def _attend(self, attention: Any, rows: Tensor, spans: list[WindowSpan]) -> tuple[Tensor, list[Heads]]:
        """Return attention [B, N * p, Dv] within windows; and heads [B * windows, H, patches, dh] of each span."""
        query, key, value = attention.qkv(rows).unflatten(-1, (3, attention.num_heads, -1)).unbind(2)
        query, key = self._turned(query), self._turned(key)
        mixed, seen = list[Tensor](), list[Heads]()
        for span in spans:
            q, k, v = (span.of(x).transpose(1, 2) for x in (query, key, value))
            out = F.scaled_dot_product_attention(q, k, v, scale=attention.scaling).transpose(1, 2)
            mixed.append(out.reshape(-1, span.rows, rows.shape[2]))
            seen.append(Heads(q, k, attention.scaling))
        joined = torch.cat(mixed, dim=1) if len(mixed) > 1 else mixed[0]
        found: Tensor = attention.proj(joined)
        return found, seen

    def _turned(self, heads: Tensor) -> Tensor:
        """Apply RoPE in fp32 to [B, N * p, H, dh]: half of a head is rotated against the other half."""
        wide = heads.float()
        left, right = wide.chunk(2, dim=-1)
        return (wide * self.cos + torch.cat([-right, left], dim=-1) * self.sin).to(heads.dtype)

    def _scored(self, kind: str, seen: list[Heads], spans: list[WindowSpan]) -> Tensor:
        """Return a score of tokens [B, N, ...] in raster order, from the heads of each span."""
        parts = [score(kind, heads, 0) for heads in seen]  # [B * windows, patches, ...]
        rows = torch.cat([x.reshape(-1, span.rows, *x.shape[2:]) for x, span in zip(parts, spans, strict=True)], dim=1)
        tokens = torch.unflatten(rows, 1, (self.tokens, self.patches))
        found = tokens.float().mean(2).to(rows.dtype) if kind == "patch_key" else tokens.sum(2)
        return found.index_select(1, self.back) if self.reordered else found


def merged(merger: nn.Module, features: Tensor, patches: int) -> Tensor:
    """Apply a merger of transformers, which expects one patch per row: features [B, n, p * Dv] -> [B, n, D]."""
    batch, tokens, width = features.shape
    out: Tensor = merger(features.reshape(-1, width // patches))
    return out.reshape(batch, tokens, -1)


class QwenProjector(nn.Module):
    """features [B, n, p * Dv] -> vision_tokens [B, n, D], token by token."""

    def __init__(self, merger: nn.Module, patches: int) -> None:
        super().__init__()
        self.merger, self.patches = merger, patches

    def forward(self, features: Tensor) -> Tensor:
        return merged(self.merger, features, self.patches)


class QwenDownsampled(nn.Module):
    """Features of `grid` tokens of the downsampled image, and the place of each on the full grid.

    Args:
        tower: the vision encoder of a Qwen2-VL or Qwen2.5-VL.
        full, grid: rows and columns of tokens of the full and of the downsampled image.

    Raises:
        BadModel: the encoder has DeepStack planes, for which the graph has no outputs.
        BadSchedule: the grid is larger than that of the full image.
    """

    rows: Tensor
    columns: Tensor
    places: Tensor

    def __init__(self, tower: PreTrainedModel, full: tuple[int, int], grid: tuple[int, int]) -> None:
        super().__init__()
        if not all(1 <= side <= whole for side, whole in zip(grid, full, strict=True)):
            raise BadSchedule(
                f"a downsampled image of {grid[0]} x {grid[1]} tokens must be within 1 x 1 and {full[0]} x {full[1]}"
            )
        self.vision = QwenVisionEncoder(tower, grid)
        if self.vision.planes:
            raise BadModel(
                f"the vision encoder '{tower.config.model_type}' gives DeepStack planes, so it cannot take a smaller "
                "image here; use another method"
            )
        edge = tower.config.patch_size * tower.config.spatial_merge_size
        for name, side, whole in zip(("rows", "columns"), grid, full, strict=True):
            self.register_buffer(name, resize_matrix(whole * edge, side * edge, whole * edge), persistent=False)
        self.register_buffer("places", centres(full, grid), persistent=False)

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """pixel_values [B, 3, h, w] fp32 of the full image -> features [B, k, p * Dv], vision_index [B, k] int64."""
        pixels = matmul(matmul(self.rows, pixel_values), self.columns.transpose(0, 1))
        features: Tensor = self.vision(pixels)
        return features, self.places.expand(features.shape[0], -1)
