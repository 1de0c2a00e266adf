# SPDX-License-Identifier: Apache-2.0
"""Windows of a vision encoder at a fixed image size: grouped by size into batches, so that none needs a mask.

An image that is not a multiple of the window has smaller windows at its right edge, lower edge and corner: four sizes
at most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers.vision_utils import get_vision_window_index


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
