# SPDX-License-Identifier: Apache-2.0
"""Rotary positions with three axes (M-RoPE), in few operators.

Each frequency follows one axis: time, row or column of an image. transformers splices or scatters the three tables of
angles together; here the choice is a constant factor of 0 or 1, and the sum of one angle and two zeros is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class MRope(nn.Module):
    """Equivalent of `rotary`, the rotary embedding of a Qwen-VL decoder; dh is the width of a head."""

    frequencies: Tensor

    def __init__(self, rotary: nn.Module) -> None:
        super().__init__()
        source: Any = rotary
        self.scaling: float = source.attention_scaling
        half = source.inv_freq.shape[0]
        axes = torch.arange(3.0)[:, None, None, None].repeat(1, 1, 1, half)
        follows = source.recomposition_frequencies(axes)[0, 0, :half]
        chosen = follows[None] == torch.arange(3)[:, None]
        self.register_buffer("frequencies", (chosen * source.inv_freq.float())[:, None, None], persistent=False)

    def forward(self, rows: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [3, B, S], or [B, S] if equal on all axes -> cos and sin [B, S, dh] in the dtype of `rows`."""
        angles = (position_ids[..., None].float() * self.frequencies).sum(0)
        both = torch.cat([angles, angles], dim=-1)
        return (both.cos() * self.scaling).to(rows.dtype), (both.sin() * self.scaling).to(rows.dtype)
