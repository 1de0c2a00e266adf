# SPDX-License-Identifier: Apache-2.0
"""InternVL: tiles, pixel shuffle and scores against transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

from secateur.checkpoints.tiny_model import random_model
from secateur.errors import BadModel
from secateur.families import internvl
from secateur.families.base import Size
from tests.model_fixtures.exporting import check_in_onnx, random_pixels
from tests.model_fixtures.towers import check_streamed, eager_attentions, patch_scores, processed

SIZES: list[Size] = [(48, 48), (24, 48), (48, 24), (33, 97), (97, 33), (24, 24), (20, 20), (5, 400)]
KINDS: dict[str, dict[str, Any]] = {
    "tiny": {},
    "300m": {"use_qk_norm": False, "attention_bias": True},
    "6b": {"norm_type": "rms_norm"},
    "normed": {"use_mean_pooling": False},
}


@pytest.fixture(scope="module")
def family() -> internvl.Family:
    return internvl.Family.tiny()


def changed(vision: dict[str, Any], **further: Any) -> internvl.Family:
    """The tiny model with other settings."""
    small = internvl.Family.tiny()
    config = small.model.config
    settings = config.vision_config.to_dict() | vision
    made = InternVLConfig(
        **{
            "vision_config": type(config.vision_config)(**settings),
            "text_config": copy.deepcopy(config.text_config),
            "image_token_id": config.image_token_id,
            **further,
        }
    )
    return internvl.Family(random_model(InternVLForConditionalGeneration, made), small.processor, "random")


def check_equal(seen: internvl.Family) -> None:
    for batch in (1, 2):
        pixels = random_pixels(seen.pixels, batch)
        given = seen.inputs(torch.zeros(1, 1, dtype=torch.int64), pixels.numpy())
        wanted = seen.model.get_image_features(given["pixel_values"]).pooler_output
        features = seen.vision()(pixels)
        assert features.shape[-1] == seen.dimensions.vision_width
        torch.testing.assert_close(seen.projector()(features).flatten(0, 1), wanted.flatten(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_vision_and_projector_equal_transformers(family: internvl.Family, size: Size) -> None:
    seen = family.at(size)
    assert isinstance(seen, internvl.Family)
    check_equal(seen)


@pytest.mark.parametrize("layer", [-1, -2])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_towers(kind: str, layer: int) -> None:
    check_equal(changed(KINDS[kind], vision_feature_layer=layer))


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_rows_are_those_of_the_processor(family: internvl.Family, size: Size) -> None:
    seen = family.at(size)
    made = processed(seen)
    rows = int((made["input_ids"] == seen.image_token_id).sum())
    features = seen.vision()(random_pixels(seen.pixels, 1))
    assert rows == sum(a * b for a, b in seen.grids) == features.shape[1]
    assert made["pixel_values"].shape == seen.pixels


@pytest.mark.parametrize(("size", "tiles"), [((48, 48), 5), ((24, 48), 3), ((24, 24), 1), ((5, 400), 5)])
def test_every_tile_is_a_view(family: internvl.Family, size: Size, tiles: int) -> None:
    assert family.at(size).grids == ((3, 3),) * tiles


def squares(family: internvl.Family, score: Tensor) -> Tensor:
    """Group scores [B * T, patches] by token, [B * T, tokens, 4], with transformers' own pixel shuffle."""
    side = int(score.shape[1] ** 0.5)
    shuffled: Tensor = family.model.model.pixel_shuffle(score.reshape(-1, side, side, 1), 0.5)
    return shuffled.flatten(1, 2)


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_scores_are_the_sum_over_the_patches_of_a_token(family: internvl.Family, layer: int) -> None:
    pixels = random_pixels(family.pixels)
    scores = patch_scores(eager_attentions(family.model.model.vision_tower, pixels.flatten(0, 1))[layer])
    assert set(scores) == {"received", "given", "class_token"}
    features, *got = family.vision(tuple(f"{kind}.{layer}" for kind in scores))(pixels)
    assert torch.equal(features, family.vision()(pixels))
    for ours, patches in zip(got, scores.values(), strict=True):
        torch.testing.assert_close(ours, squares(family, patches).sum(-1).reshape(2, -1), rtol=1e-4, atol=1e-5)


def test_keys_are_the_mean_over_the_patches_of_a_token(family: internvl.Family) -> None:
    """Keys are read after their norm, as attention uses them."""
    pixels, attention = random_pixels(family.pixels), family.model.model.vision_tower.encoder.layer[-2].attention
    seen: list[Tensor] = []
    hook = attention.k_norm.register_forward_hook(lambda module, given, out: seen.append(out))
    _, got = family.vision(("patch_key.-2",))(pixels)
    hook.remove()
    keys = seen[0][:, 1:].unflatten(-1, (attention.num_heads, -1)).mean(2)
    assert got.shape == (2, 45, family.patch_key_width)
    for channel in range(family.patch_key_width):
        wanted = squares(family, keys[..., channel]).mean(-1).reshape(2, -1)
        torch.testing.assert_close(got[..., channel], wanted, rtol=1e-4, atol=1e-5)


def test_the_projector_works_row_by_row(family: internvl.Family) -> None:
    features, project = family.vision()(random_pixels(family.pixels)), family.projector()
    torch.testing.assert_close(project(features[:, 5:20:3]), project(features)[:, 5:20:3])


def test_weights_are_the_models_own(family: internvl.Family) -> None:
    own = {id(weight) for weight in family.model.parameters()}
    for module in (family.vision(), family.projector()):
        assert {id(weight) for weight in module.parameters()} <= own


def test_a_streamed_model_gives_the_same(family: internvl.Family, tmp_path: Path) -> None:
    check_streamed(family, tmp_path)


def test_refusals(family: internvl.Family) -> None:
    with pytest.raises(BadModel, match="several tiles cannot be downsampled .*, or use another method"):
        family.vision(grid=(2, 2))
    with pytest.raises(BadModel, match="set vision_feature_select_strategy to 'default'"):
        _ = changed({}, vision_feature_select_strategy="full").grids
    with pytest.raises(BadModel, match="5 x 5 patches cannot be divided into squares of 2 x 2"):
        changed({"image_size": 20}).vision()


@pytest.mark.parametrize(("opset", "dtype"), [(20, torch.float16), (23, torch.float32)], ids=["20-fp16", "23-fp32"])
def test_in_onnx(family: internvl.Family, opset: int, dtype: torch.dtype, tmp_path: Path) -> None:
    seen = copy.deepcopy(family).at((24, 48))
    seen.to(dtype)
    atol = 1e-4 if dtype == torch.float32 else 3e-2
    model = check_in_onnx(seen.vision(("received.-2", "patch_key.-1")), seen.pixels, opset, tmp_path, atol)
    if opset >= 23:
        assert [node.op_type for node in model.graph.node].count("Attention") >= 2
    features = seen.vision()(random_pixels(seen.pixels))
    assert features.dtype == dtype
    check_in_onnx(seen.projector(), features.shape[1:], opset, tmp_path, atol, features.dtype)


def test_several_feature_layers_are_refused() -> None:
    family = internvl.Family.tiny()
    family.model.config.vision_feature_layer = [-1, -2]
    with pytest.raises(BadModel, match=r"vision_feature_layer \[-1, -2\] must be one layer; correct it in config.json"):
        family.vision()
