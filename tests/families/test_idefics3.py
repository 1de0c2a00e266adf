# SPDX-License-Identifier: Apache-2.0
"""Idefics3 and SmolVLM against transformers' own classes, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from secateur.errors import BadModel
from secateur.families import idefics3, smolvlm
from secateur.families.base import Family, Size
from secateur.vision.tiles import PixelShuffle, squares
from tests.model_fixtures.exporting import check_in_onnx, random_pixels
from tests.model_fixtures.stepping import check_steps
from tests.model_fixtures.towers import eager_attentions

BUCKETS: dict[Size, int] = {(48, 48): 5, (48, 24): 3, (20, 50): 3, (30, 33): 5}
"""Number of tiles by image size: tiles of 24 x 24 at a longest edge of 48, and the whole image."""


@pytest.fixture(scope="module", params=[idefics3, smolvlm], ids=lambda module: module.__name__.rpartition(".")[2])
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = request.param.Family.tiny()
    return made


def tower_of(family: Family) -> Any:
    return family.model.model.vision_model


def own_features(family: Family, pixels: Tensor) -> Tensor:
    """[B, N, D] of transformers' own forward pass."""
    return torch.stack(list(family.model.get_image_features(pixels).pooler_output))


@pytest.mark.parametrize("bucket", BUCKETS)
@pytest.mark.parametrize("batch", [1, 2])
def test_vision_and_projector_equal_transformers(family: Family, bucket: Size, batch: int) -> None:
    seen = family.at(bucket)
    assert seen.pixels == (BUCKETS[bucket], 3, 24, 24) and seen.grids == ((3, 3),) * BUCKETS[bucket]
    pixels = random_pixels(seen.pixels, batch)
    found = seen.projector()(seen.vision()(pixels))
    torch.testing.assert_close(found, own_features(family, pixels), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("edge", [8, 16, 24, 32, 40])
def test_tiles_of_another_size_than_the_tower_was_made_for(family: Family, edge: int) -> None:
    """The position of a patch then differs from its raster index."""
    pixels = random_pixels((3, 3, edge, edge))
    vision = PixelShuffle(idefics3.Tower(tower_of(family), edge), (edge // 4, edge // 4), 2)
    found = family.projector()(vision(pixels.flatten(0, 1)).reshape(2, -1, 128))
    torch.testing.assert_close(found, own_features(family, pixels), rtol=1e-5, atol=1e-5)
    positions = idefics3.position_ids(tower_of(family), edge)[0].tolist()
    assert (positions == list(range(36))) == (edge == 24)


def test_positions_need_no_weights(family: Family) -> None:
    with torch.device("meta"):
        empty: Any = type(tower_of(family))(tower_of(family).config)
    assert torch.equal(idefics3.position_ids(empty, 40), idefics3.position_ids(tower_of(family), 40))


def test_a_projector_row_is_a_vision_token(family: Family) -> None:
    features = family.vision()(random_pixels(family.pixels))
    some = torch.tensor([0, 7, 20, 44])
    picked = family.projector()(features[:, some])
    torch.testing.assert_close(picked, family.projector()(features)[:, some])
    assert features.shape == (2, family.layout.vision_tokens, family.dimensions.vision_width)


@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("bucket", BUCKETS)
def test_rows_are_those_of_the_processor(family: Family, bucket: Size, images: int) -> None:
    """Every tile is a view, and the text between the views stays."""
    layout = family.at(bucket, images).layout
    assert layout.images == images and len(layout.views) == images * BUCKETS[bucket]
    words = family.tokenizer.convert_ids_to_tokens(list(layout.head))
    marks = [word for word in words if word.startswith(("<row", "<global"))]
    assert len(marks) == len(layout.views) and marks[-1] == "<global-img>"
    assert all(view.grid == (3, 3) and view.tokens == 9 for view in layout.views)
    starts = [view.start for view in layout.views]
    assert all(b - a > 9 for a, b in zip(starts, starts[1:], strict=False))


def merged(patches: Tensor, mean: bool = False) -> Tensor:
    """[B, T, 36, ...] of the patches of a tile -> [B, T * 9, ...] of its tokens, one by one."""
    tokens = []
    for row in range(3):
        for column in range(3):
            four = patches[:, :, [(2 * row + i) * 6 + 2 * column + j for i in (0, 1) for j in (0, 1)]]
            tokens.append(four.mean(2) if mean else four.sum(2))
    return torch.stack(tokens, dim=2).flatten(1, 2)


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_scores_equal_eager_attention(family: Family, layer: int) -> None:
    pixels = random_pixels(family.pixels)
    weights = eager_attentions(tower_of(family), pixels.flatten(0, 1))[layer].unflatten(0, (2, -1))
    keys: list[Tensor] = []
    hook = (
        tower_of(family)
        .encoder.layers[layer]
        .self_attn.k_proj.register_forward_hook(lambda module, given, out: keys.append(out))
    )
    features, received, given, key = family.vision(tuple(f"{k}.{layer}" for k in ("received", "given", "patch_key")))(
        pixels
    )
    hook.remove()
    assert torch.equal(features, family.vision()(pixels))
    torch.testing.assert_close(received, merged(weights.sum(3).mean(2)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given, merged(weights.sum(4).mean(2)), rtol=1e-4, atol=1e-5)
    heads = keys[0].unflatten(-1, (2, family.patch_key_width)).mean(2).unflatten(0, (2, -1))
    torch.testing.assert_close(key, merged(heads, mean=True))


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vision_in_onnx(opset: int, dtype: torch.dtype, tmp_path: Path) -> None:
    family = idefics3.Family.tiny().at((48, 24))
    family.to(dtype)
    vision = family.vision(("received.-2", "patch_key.-1"))
    model = check_in_onnx(vision, family.pixels, opset, tmp_path, 1e-4 if dtype == torch.float32 else 2e-2)
    attentions = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(attentions) == (3 if opset >= 23 else 0)


def test_squares_keep_raster_order() -> None:
    found = squares(torch.arange(24).reshape(1, 24), (4, 6), 2)
    assert found[0].tolist() == [
        [0, 1, 6, 7],
        [2, 3, 8, 9],
        [4, 5, 10, 11],
        *([a + 12, a + 13, a + 18, a + 19] for a in (0, 2, 4)),
    ]


def test_patches_that_cannot_be_divided_into_squares(family: Family) -> None:
    with pytest.raises(BadModel, match="5 x 5 patches cannot be divided into squares of 2 x 2"):
        PixelShuffle(torch.nn.Identity(), (5, 5), 2)


def test_a_smaller_image_is_refused(family: Family) -> None:
    with pytest.raises(BadModel, match="an image of several tiles cannot be downsampled"):
        family.vision(grid=(2, 2))


@pytest.mark.parametrize("images", [1, 2])
def test_the_decoder_equals_transformers(family: Family, images: int) -> None:
    """With text tokens between the tiles."""
    check_steps(family.at((48, 24), images))


def test_own_inputs_see_every_tile(family: Family) -> None:
    """Inputs of transformers contain the tiles of all images, without padding."""
    pair = family.at((48, 24), images=2)
    pixels = np.random.default_rng(0).normal(size=(2, *pair.pixels)).astype(np.float32)
    ids = torch.tensor([[*pair.conversation.head_ids, 25]])
    given = pair.inputs(ids, pixels)
    assert given["pixel_values"].shape == (1, 6, 3, 24, 24) and bool(given["pixel_attention_mask"].all())
    assert family.model(**given).logits.shape[:2] == ids.shape
