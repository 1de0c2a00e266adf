# SPDX-License-Identifier: Apache-2.0
"""LLaVA-NeXT and LLaVA-OneVision: tiles, lines and newlines against transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BadModel
from secateur.families import llava_next, llava_onevision
from secateur.families.base import Family, Size
from secateur.vision import anyres
from secateur.vision.native_sizes import shown
from tests.model_fixtures.exporting import check_in_onnx, random_pixels
from tests.model_fixtures.towers import check_streamed, eager_attentions, patch_scores, processed

MODULES: dict[str, Any] = {"llava_next": llava_next, "llava_onevision": llava_onevision}
SIZES: list[Size] = [(36, 36), (20, 36), (36, 20), (18, 40), (33, 97), (97, 33), (20, 100), (18, 18), (5, 7)]

FULL_SIZE = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]


@pytest.fixture(scope="module", params=MODULES)
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = MODULES[request.param].Family.tiny()
    return made


def packed(family: Family, rows: Tensor, newline: Tensor) -> Tensor:
    """Pack rows of tiles with transformers: [B, T, patches, D] -> [B, N, D]."""
    special: dict[str, Any] = (
        {"vision_feature_select_strategy": "default"}
        if family.name == "llava_next"
        else {"vision_aspect_ratio": family.model.config.vision_aspect_ratio}
    )
    sizes = torch.tensor([family.bucket] * len(rows))
    found, _ = family.model.model.pack_image_features(list(rows), sizes, image_newline=newline, **special)
    return torch.stack(found)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_vision_and_projector_equal_transformers(family: Family, size: Size) -> None:
    seen = family.at(size)
    for batch in (1, 2):
        pixels = random_pixels(seen.pixels, batch)
        given = seen.inputs(torch.zeros(1, 1, dtype=torch.int64), pixels.numpy())
        wanted = seen.model.get_image_features(given["pixel_values"], given["image_sizes"]).pooler_output
        features = seen.vision()(pixels)
        assert features.shape[-1] == seen.dimensions.vision_width
        torch.testing.assert_close(seen.projector()(features), torch.stack(list(wanted)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_are_those_of_the_processor(family: Family, size: Size) -> None:
    seen = family.at(size)
    made = processed(seen)
    rows = int((made["input_ids"] == seen.image_token_id).sum())
    assert rows == sum(view.tokens for view in seen.views) == seen.vision()(random_pixels(seen.pixels, 1)).shape[1]
    assert made["pixel_values"].shape[1:] == seen.pixels
    assert made["image_sizes"].tolist() == [list(seen.bucket)]


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((36, 36), [(3, 3), (3, 4), (3, 3), (3, 4)]),
        ((20, 36), [(2, 3), (2, 4), (2, 3), (2, 4)]),
        ((36, 20), [(3, 2), (3, 3), (3, 2), (3, 3)]),
        ((18, 36), [(3, 3), (3, 4)]),
        ((36, 18), [(3, 4), (3, 4)]),
    ],
)
def test_padding_is_cut_off_the_outer_tiles(family: Family, size: Size, tiles: list[Size]) -> None:
    assert family.at(size).grids == ((3, 3), *tiles)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_tile_is_a_view(family: Family, size: Size) -> None:
    """Rows of a view are the patches of one tile, line by line; at the right end, newlines follow them."""
    seen = family.at(size)
    assert isinstance(seen, llava_next.Family)
    arranged = seen.arrangement
    found = list[int]()
    for number, view in enumerate(arranged.views):
        lines = torch.tensor([arranged.rows[row] for row in view.rows]).reshape(view.grid)
        found += view.rows
        if lines[0, -1] < 0:
            assert (lines[:, -1] < 0).all()
            lines = lines[:, :-1]
        tile = int(lines[0, 0]) // 9
        assert (lines // 9 == tile).all() and (number == 0) == (tile == 0)
        places = lines % 9
        assert (places.diff(dim=0) == 3).all() and (places.diff(dim=1) == 1).all()
    assert sorted(found) == list(range(len(arranged.rows)))


def test_a_tile_of_padding_has_no_view() -> None:
    made = anyres.arrangement((18, 54), [(54, 54)], 18, 3)
    assert [view.grid for view in made.views] == [(3, 3), (3, 3), (3, 3), (3, 4)] and made.tiles == 10


@pytest.mark.parametrize(("size", "rows"), [((672, 672), 2928), ((336, 672), 1752), ((1080, 1920), 1948)])
def test_full_size(size: Size, rows: int) -> None:
    """LLaVA-1.6: tiles of 336 x 336 pixels and 24 x 24 patches."""
    made = anyres.arrangement(size, FULL_SIZE, 336, 24)
    assert len(made.rows) == sum(view.tokens for view in made.views) == rows


def test_newlines_end_the_lines_of_the_joined_grid(family: Family) -> None:
    seen = family.at((20, 36))
    flags = seen.vision()(random_pixels(seen.pixels, 1))[0, :, -1]
    assert not flags[:9].any()
    lines = flags[9:].reshape(4, 7)
    assert lines[:, -1].all() and not lines[:, :-1].any()


def test_the_projector_works_row_by_row(family: Family) -> None:
    features = family.vision()(random_pixels(family.pixels))
    order = torch.randperm(features.shape[1], generator=torch.Generator().manual_seed(3))[:20]
    project = family.projector()
    torch.testing.assert_close(project(features[:, order]), project(features)[:, order])


@pytest.mark.parametrize("several", [[-3, -1], [-2]])
def test_joined_feature_layers(several: list[int]) -> None:
    small = llava_next.Family.tiny()
    config = copy.deepcopy(small.model.config)
    config.vision_feature_layer = several
    model = type(small.model)(config).eval()
    seen = llava_next.Family(model, small.processor, "random").at((20, 36))
    pixels = random_pixels(seen.pixels)
    wanted = model.get_image_features(pixels, torch.tensor([seen.bucket] * 2)).pooler_output
    features = seen.vision()(pixels)
    assert features.shape[-1] == seen.dimensions.vision_width == 32 * len(several) + 1
    torch.testing.assert_close(seen.projector()(features), torch.stack(list(wanted)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("layer", [-1, -2, -3])
@pytest.mark.parametrize("size", [(36, 36), (20, 36)], ids=str)
def test_scores_equal_eager_attention(family: Family, size: Size, layer: int) -> None:
    seen = family.at(size)
    pixels = random_pixels(seen.pixels)
    scores = patch_scores(eager_attentions(seen.model.model.vision_tower, pixels.flatten(0, 1))[layer])
    assert ("class_token" in scores) == seen.dimensions.class_token
    features, *got = seen.vision(tuple(f"{kind}.{layer}" for kind in scores))(pixels)
    assert torch.equal(features, seen.vision()(pixels))
    for ours, patches in zip(got, scores.values(), strict=True):
        wanted = packed(seen, patches.reshape(2, pixels.shape[1], -1, 1), torch.zeros(1))
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, wanted[..., 0], rtol=1e-4, atol=1e-5)


def test_images_of_a_batch_are_independent(family: Family) -> None:
    pixels, vision = random_pixels(family.pixels, 3), family.vision(("received.-2",))
    for i in range(3):
        for whole, alone in zip(vision(pixels), vision(pixels[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], alone, rtol=1e-4, atol=1e-4)


def test_weights_are_the_models_own(family: Family) -> None:
    own = {id(weight) for weight in family.model.parameters()}
    for module in (family.vision(), family.projector()):
        assert {id(weight) for weight in module.parameters()} <= own
    assert family.model.model.image_newline in list(family.projector().parameters())


def test_a_streamed_model_gives_the_same(family: Family, tmp_path: Path) -> None:
    check_streamed(family, tmp_path)


def test_merging_by_keys_is_refused(family: Family) -> None:
    with pytest.raises(BadModel, match="merge newlines with patches"):
        family.vision(("patch_key.-2",))


def test_a_smaller_image_is_refused(family: Family) -> None:
    with pytest.raises(BadModel, match="export a smaller --image-size"):
        family.vision(grid=(2, 2))


def test_one_of_several_images_is_shown_whole() -> None:
    """LLaVA-OneVision: equal to transformers with several images in one prompt."""
    seen = llava_onevision.Family.tiny().at((20, 36), images=2)
    assert seen.grids == ((3, 3), (1, 1)) and seen.pixels == (1, 3, 18, 18)
    pixels = random_pixels(seen.pixels)
    given = seen.inputs(torch.zeros(1, 1, dtype=torch.int64), pixels.numpy())
    del given["input_ids"]
    wanted = seen.model.get_image_features(**given).pooler_output
    torch.testing.assert_close(seen.projector()(seen.vision()(pixels)), torch.stack(list(wanted)), rtol=0, atol=1e-5)
    assert [view.tokens for view in seen.layout.views] == [9, 1, 9, 1]


def test_a_size_without_patches_is_refused() -> None:
    with pytest.raises(BadModel, match=f"{shown((400, 1))} is so narrow that no patch .* use {shown((18, 36))}"):
        _ = llava_next.Family.tiny().at((400, 1)).grids


def test_a_canvas_that_is_not_made_of_tiles_is_refused() -> None:
    with pytest.raises(BadModel, match="not made of tiles of 18 x 18"):
        anyres.arrangement((30, 30), [(36, 40)], 18, 3)


def test_a_class_token_among_the_features_is_refused(family: Family) -> None:
    config = family.model.config
    before = config.vision_feature_select_strategy
    config.vision_feature_select_strategy = "full" if before == "default" else "default"
    try:
        with pytest.raises(BadModel, match="vision_feature_select_strategy '.*' in config.json is not supported for"):
            _ = family.grids
    finally:
        config.vision_feature_select_strategy = before


def test_a_grid_that_transformers_would_shrink_is_refused() -> None:
    """anyres_max_4 of the tiny model: 6 tiles are shrunk, and 2 x 2 fit."""
    seen = llava_onevision.Family.tiny().at((54, 36))
    with pytest.raises(BadModel, match=f"{shown((54, 36))} has more than the 4 tiles .* use 36x36"):
        _ = seen.grids
    rows = torch.zeros(1, 7, 9, 1)
    assert packed(seen, rows, torch.ones(1)).shape[1] < 9 + 9 * 7


@pytest.mark.parametrize(("opset", "dtype"), [(20, torch.float16), (23, torch.float32)], ids=["20-fp16", "23-fp32"])
def test_in_onnx(family: Family, opset: int, dtype: torch.dtype, tmp_path: Path) -> None:
    seen = copy.deepcopy(family).at((20, 36))
    seen.to(dtype)
    atol = 1e-4 if dtype == torch.float32 else 2e-2
    model = check_in_onnx(seen.vision(("received.-2",)), seen.pixels, opset, tmp_path, atol)
    if opset >= 23:
        assert [node.op_type for node in model.graph.node].count("Attention") >= 2
    features = seen.vision()(random_pixels(seen.pixels))
    assert features.dtype == dtype
    projector: nn.Module = seen.projector()
    check_in_onnx(projector, features.shape[1:], opset, tmp_path, atol, features.dtype)
