# SPDX-License-Identifier: Apache-2.0
"""Scores of the vision encoder against transformers' own eager attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from secateur.errors import BadModel
from secateur.families import llava
from secateur.families.base import Family
from secateur.load_model import load
from secateur.vision import encoder
from tests.model_fixtures.exporting import random_pixels, written
from tests.model_fixtures.towers import eager_attentions, tower_of

KINDS = ("received", "given", "patch_key")


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_scores_equal_eager_attention(family: Family, layer: int) -> None:
    first = int(family.dimensions.class_token)
    pixels = random_pixels(family.pixels)
    weights = eager_attentions(tower_of(family), pixels)[layer]
    kinds = ("received", "given", *(("class_token",) if first else ()))
    _, *got = family.vision(tuple(f"{kind}.{layer}" for kind in kinds))(pixels)
    patches = weights[:, :, first:, first:]
    expected = [patches.sum(2).mean(1), patches.sum(3).mean(1), weights[:, :, 0, first:].mean(1)]
    for score, wanted in zip(got, expected, strict=False):
        assert score.dtype == torch.float32
        torch.testing.assert_close(score, wanted, rtol=1e-4, atol=1e-5)


def test_patch_key_is_the_mean_over_heads(family: Family) -> None:
    first, layer = int(family.dimensions.class_token), tower_of(family).encoder.layers[-2]
    seen: list[Tensor] = []
    hook = layer.self_attn.k_proj.register_forward_hook(lambda module, given, out: seen.append(out))
    pixels = random_pixels(family.pixels)
    _, key = family.vision(("patch_key.-2",))(pixels)
    hook.remove()
    heads = tower_of(family).config.num_attention_heads
    torch.testing.assert_close(key, seen[0][:, first:].unflatten(-1, (heads, -1)).mean(2))


def test_without_a_class_token_given_attention_is_constant(siglip: Family) -> None:
    """The direction rule of FoPru is degenerate there: rows of a softmax add up to 1."""
    assert not siglip.dimensions.class_token
    _, shared = siglip.vision(("given.-2",))(random_pixels(siglip.pixels))
    torch.testing.assert_close(shared, torch.ones_like(shared))


def test_reading_changes_no_feature(family: Family) -> None:
    pixels = random_pixels(family.pixels)
    plain = family.vision()(pixels)
    assert isinstance(plain, Tensor)
    features, score = family.vision(("received.-2",))(pixels)
    assert torch.equal(features, plain) and score.shape == plain.shape[:2]
    torch.testing.assert_close(
        family.projector()(plain).flatten(0, 1),
        torch.cat(list(family.model.get_image_features(pixel_values=pixels).pooler_output)),
    )


def test_images_of_a_batch_are_independent(family: Family) -> None:
    pixels = random_pixels(family.pixels, batch=3)
    vision = family.vision(("received.-2",))
    for i in range(3):
        for whole, single in zip(vision(pixels), vision(pixels[i : i + 1]), strict=True):
            torch.testing.assert_close(whole[i : i + 1], single, rtol=1e-4, atol=1e-4)


def test_permuting_heads_changes_no_score() -> None:
    query, key = torch.randn(2, 4, 10, 8), torch.randn(2, 4, 10, 8)
    order = [2, 0, 3, 1]
    for kind in (*KINDS, "class_token"):
        straight = encoder.score(kind, encoder.Heads(query, key, 0.3), 1)
        mixed = encoder.score(kind, encoder.Heads(query[:, order], key[:, order], 0.3), 1)
        torch.testing.assert_close(straight, mixed)


def test_the_attention_setting_is_restored(siglip: Family) -> None:
    config = tower_of(siglip).config
    before = config._attn_implementation
    with pytest.raises(RuntimeError), encoder.recorded(config):
        assert config._attn_implementation == encoder.NAME
        raise RuntimeError
    assert config._attn_implementation == before
    with encoder.recorded(config) as record:
        siglip.vision()(random_pixels(siglip.pixels))
    assert len(record) == config.num_hidden_layers
    siglip.vision()(random_pixels(siglip.pixels))
    assert len(record) == config.num_hidden_layers


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("class_token.-2", "needs a class token.*use received.-2"),
        ("received.-4", "outside the encoder of 3 layers; use -3 to -1"),
        ("received.0", "outside the encoder"),
        ("received.x", "has no score 'received.x'"),
        ("query", "has no score 'query'"),
    ],
)
def test_scores_that_do_not_exist(siglip: Family, name: str, says: str) -> None:
    with pytest.raises(BadModel, match=says):
        siglip.vision((name,))


def test_half_precision(demo: Family) -> None:
    half = load("demo", torch.float16)
    reads = ("received.-2", "class_token.-2", "patch_key.-2")
    pixels = random_pixels(demo.pixels)
    for ours, wanted in zip(half.vision(reads)(pixels), demo.vision(reads)(pixels), strict=True):
        torch.testing.assert_close(ours.float(), wanted, rtol=0.02, atol=0.02)
    assert [x.dtype for x in half.vision(reads)(pixels)] == [torch.float16, torch.float32, torch.float32, torch.float16]


@pytest.mark.parametrize("opset", [20, 23])
def test_scores_are_a_small_side_branch(clip: llava.Family, opset: int, tmp_path: Path) -> None:
    """Every layer's attention stays fused, and layers after the features are not in the graph."""
    layers = 2  # of 3: features are read from the second last layer
    pixels = random_pixels(clip.pixels)
    before, small = written(clip.vision(), clip, {"features": clip.vision()(pixels)}, opset, tmp_path / "plain")
    reads = ("received.-2", "class_token.-2", "patch_key.-2")
    outputs = dict(zip(("features", *reads), clip.vision(reads)(pixels), strict=True))
    after, large = written(clip.vision(reads), clip, outputs, opset, tmp_path / "read")
    assert after["LayerNormalization"] == before["LayerNormalization"] == 1 + 2 * layers
    if opset >= 23:
        assert after["Attention"] == before["Attention"] == layers and "Softmax" not in before
    assert after["Softmax"] - before["Softmax"] == 2
    assert after.total() - before.total() < 20 and large - small < 5000


def test_the_last_layer_scores_without_being_run(clip: llava.Family, tmp_path: Path) -> None:
    """Only its queries and keys are computed; its attention and MLP are not in the graph."""
    vision = clip.vision(("received.-1",))
    outputs = dict(zip(("features", "score"), vision(random_pixels(clip.pixels)), strict=True))
    found, _ = written(vision, clip, outputs, 23, tmp_path)
    assert found["Attention"] == 2 and found["Softmax"] == 1 and found["LayerNormalization"] == 1 + 2 * 2 + 1


def test_siglip_scores_in_onnx(siglip: llava.Family, tmp_path: Path) -> None:
    reads = tuple(f"{kind}.-2" for kind in KINDS)
    outputs = dict(zip(("features", *reads), siglip.vision(reads)(random_pixels(siglip.pixels)), strict=True))
    found, _ = written(siglip.vision(reads), siglip, outputs, 23, tmp_path)
    assert found["Attention"] == 2
