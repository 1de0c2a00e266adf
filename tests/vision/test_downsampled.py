# SPDX-License-Identifier: Apache-2.0
"""The downsampled vision encoder against transformers' own tower on the resized image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from secateur.errors import BadModel, BadSchedule
from secateur.families import llava
from secateur.families.base import Family
from secateur.load_model import load
from secateur.vision import downsampled
from tests.model_fixtures.exporting import random_pixels, written
from tests.model_fixtures.towers import siglip_family, tower_of


def resized(family: Family, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    config = tower_of(family).config
    covered = config.image_size // config.patch_size * config.patch_size
    size = (grid[0] * config.patch_size, grid[1] * config.patch_size)
    return F.interpolate(pixels[:, :, :covered, :covered], size=size, mode="bicubic", antialias=True)


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 5), (6, 4), (5, 5)])
def test_downsampled_equals_transformers_tower(family: Family, grid: tuple[int, int]) -> None:
    pixels, first = random_pixels(family.pixels), int(family.dimensions.class_token)
    features, index = family.vision(grid=grid)(pixels)
    states = tower_of(family)(
        resized(family, pixels, grid), interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states
    torch.testing.assert_close(features, states[-2][:, first:], rtol=1e-4, atol=1e-4)
    assert index.shape == (2, grid[0] * grid[1]) and torch.equal(index[0], index[1])


def test_the_full_grid_is_the_plain_encoder(family: Family) -> None:
    pixels, grid = random_pixels(family.pixels), family.layout.grid
    features, index = family.vision(grid=grid)(pixels)
    assert torch.equal(features, family.vision()(pixels))
    assert index[0].tolist() == list(range(grid[0] * grid[1]))


@pytest.mark.parametrize("head", [True, False])
def test_pixels_after_the_last_patch_are_not_seen(head: bool) -> None:
    family = siglip_family(image_size=27, head=head)
    pixels = random_pixels(family.pixels)
    other = pixels.clone()
    other[:, :, 24:], other[:, :, :, 24:] = 9, 9
    assert torch.equal(family.vision()(pixels), family.vision(grid=(6, 6))(pixels)[0])
    assert torch.equal(family.vision(grid=(4, 4))(pixels)[0], family.vision(grid=(4, 4))(other)[0])
    states = tower_of(family)(
        resized(family, pixels, (4, 4)), interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states
    torch.testing.assert_close(family.vision(grid=(4, 4))(pixels)[0], states[-2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 24, 36, 48])
def test_resizing_is_torch_and_nearly_pillow(size: int) -> None:
    image = np.random.default_rng(0).integers(60, 200, (48, 48, 3), np.uint8)
    matrix = downsampled.resize_matrix(48, size, 48)
    pixels = torch.from_numpy(image).float().permute(2, 0, 1)
    ours = matrix @ pixels @ matrix.T
    theirs = F.interpolate(pixels[None], size=(size, size), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)
    pillow = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
    assert np.abs(ours.permute(1, 2, 0).numpy() - pillow).max() <= 1.5  # Pillow rounds once per axis


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_centres(rows: int, columns: int, data: st.DataObject) -> None:
    grid = (data.draw(st.integers(1, rows)), data.draw(st.integers(1, columns)))
    found = downsampled.centres((rows, columns), grid).tolist()
    assert found == sorted(set(found)) and len(found) == grid[0] * grid[1]
    expected = [
        int((i + 0.5) * rows / grid[0] + 1e-9) * columns + int((j + 0.5) * columns / grid[1] + 1e-9)
        for i in range(grid[0])
        for j in range(grid[1])
    ]
    assert found == expected


@pytest.mark.parametrize("opset", [20, 23])
def test_downsampled_in_onnx(clip: llava.Family, opset: int, tmp_path: Path) -> None:
    """Everything that depends on the size is constant: no Resize, and no layers after the features."""
    module = clip.vision(grid=(3, 4))
    outputs = dict(zip(("features", "vision_index"), module(random_pixels(clip.pixels)), strict=True))
    found, _ = written(module, clip, outputs, opset, tmp_path)
    assert "Resize" not in found and found["LayerNormalization"] == 1 + 2 * 2


@pytest.mark.parametrize("grid", [(0, 3), (3, 7), (7, 3)])
def test_a_grid_outside_the_image(siglip: Family, grid: tuple[int, int]) -> None:
    with pytest.raises(BadSchedule, match=f"{grid[0]} x {grid[1]} patches must be within 1 x 1 and 6 x 6"):
        siglip.vision(grid=grid)


def test_an_encoder_that_cannot_be_downsampled() -> None:
    family = siglip_family()
    tower_of(family).config.model_type = "pixtral"
    with pytest.raises(BadModel, match="'pixtral' cannot take a smaller image"):
        downsampled.Downsampled(tower_of(family), [-2], 0, (2, 2))


def test_half_precision(demo: Family) -> None:
    """The resizing stays in fp32; the position embeddings are interpolated in the precision of the weights."""
    pixels = random_pixels(demo.pixels)
    features, index = load("demo", torch.float16).vision(grid=(5, 7))(pixels)
    assert features.dtype == torch.float16 and index.dtype == torch.int64
    torch.testing.assert_close(features.float(), demo.vision(grid=(5, 7))(pixels)[0], rtol=0.02, atol=0.02)
