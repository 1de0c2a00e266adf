# SPDX-License-Identifier: Apache-2.0
"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL in pieces, against transformers' own models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.modeling_qwen2_vl import eager_attention_forward
from transformers.vision_utils import get_vision_window_index

from secateur.decoder.attention import calling
from secateur.errors import BadModel, BadSchedule
from secateur.export.segments import Rotary, Segment
from secateur.families import qwen2_5_vl, qwen2_vl, qwen3_vl
from secateur.runtime.preprocess import pixel_values
from secateur.vision.qwen import windows
from tests.model_fixtures.exporting import check_in_onnx, random_pixels

FAMILIES = (qwen2_vl.Family, qwen2_5_vl.Family, qwen3_vl.Family)
SIZES = [(40, 56), (48, 40), (48, 48), (24, 72), (8, 8)]
"""Windows are 24 x 24: partial on both axes, on one axis, full, a single row of windows, a single token."""


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda cls: cls.__module__.rpartition(".")[2])
def qwen(request: pytest.FixtureRequest) -> Any:
    return request.param.tiny().at((40, 56))


@pytest.fixture(scope="module")
def windowed() -> Any:
    return qwen2_5_vl.Family.tiny().at((40, 56))


def patches_of(family: Any, pixels: Tensor) -> dict[str, Tensor]:
    """Arguments of transformers' vision encoder for these images."""
    rows, columns = family.grids[0]
    ids = torch.full((1, len(pixels) * rows * columns), family.image_token_id)
    given = family.inputs(ids, pixels.numpy())
    return {name: given[name] for name in ("pixel_values", "image_grid_thw")}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_vision_and_projector_equal_get_image_features(qwen: Any, size: tuple[int, int], batch: int) -> None:
    family = qwen.at(size)
    pixels = random_pixels(family.pixels, batch)
    expected = family.model.get_image_features(**patches_of(family, pixels))
    seen = family.vision()(pixels)
    features, planes = (seen[0], seen[1:]) if isinstance(seen, tuple) else (seen, ())
    tokens = family.grids[0][0] * family.grids[0][1]
    assert features.shape == (batch, tokens, family.dimensions.vision_width)
    assert len(planes) == family.dimensions.planes
    found = [family.projector()(features), *planes]
    wanted = [expected.pooler_output, *getattr(expected, "deepstack_features", ())]
    for ours, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours, torch.stack(list(theirs)), rtol=1e-5, atol=1e-5)


def test_the_projector_works_row_by_row(qwen: Any) -> None:
    features = torch.randn(2, 9, qwen.dimensions.vision_width)
    whole = qwen.projector()(features)
    torch.testing.assert_close(qwen.projector()(features[:, [7, 2]]), whole[:, [7, 2]], rtol=1e-5, atol=1e-5)


def eager(family: Any, pixels: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Attention [N * p, N * p] and keys [N * p, dh] of each encoder layer, mean over heads, in raster order."""
    tower, calls = family.model.model.visual, list[tuple[Tensor, Tensor]]()

    def recording(module: Any, query: Tensor, key: Tensor, *further: Any, **named: Any) -> tuple[Tensor, None]:
        out, weights = eager_attention_forward(module, query, key, *further, **named)
        calls.append((weights[0].mean(0), key[0].mean(0)))
        return out, None

    given = patches_of(family, pixels)
    with calling(tower.config, "recording", recording):
        tower(given["pixel_values"], grid_thw=given["image_grid_thw"])
    merge, layers = tower.spatial_merge_size**2, list[tuple[Tensor, Tensor]]()
    order = torch.arange(len(given["pixel_values"]))
    if hasattr(tower.config, "window_size"):
        config = tower.config
        index, _ = get_vision_window_index(given["image_grid_thw"], 2, config.window_size, config.patch_size)
        order = (index[:, None] * merge + torch.arange(merge)).flatten()
    back = torch.argsort(order)
    while calls:
        weights, keys, rows = list[Tensor](), list[Tensor](), 0
        while rows < len(order):
            block, key = calls.pop(0)
            weights, keys, rows = [*weights, block], [*keys, key], rows + len(key)
        layers.append((torch.block_diag(*weights)[back][:, back], torch.cat(keys)[back]))
    return layers


@pytest.mark.parametrize("size", SIZES[:3], ids=str)
def test_scores_equal_eager_attention(qwen: Any, size: tuple[int, int]) -> None:
    """Summed over the patches of a token, keys averaged; patches of different windows do not attend to each other."""
    family = qwen.at(size)
    pixels = random_pixels(family.pixels, 2)
    depth = len(family.model.model.visual.blocks)
    for layer in range(-depth, 0):
        _, *seen = family.vision(tuple(f"{kind}.{layer}" for kind in ("received", "given", "patch_key")))(pixels)
        received, given, keys = seen[family.dimensions.planes :]
        assert keys.shape[2] == family.patch_key_width and received.dtype == torch.float32
        for image in range(2):
            weights, key = eager(family, pixels[image : image + 1])[layer]
            for found, patches in ((received, weights.sum(0)), (given, weights.sum(1))):
                torch.testing.assert_close(found[image], patches.unflatten(0, (-1, 4)).sum(1), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(keys[image], key.unflatten(0, (-1, 4)).mean(1), rtol=1e-4, atol=1e-5)


def test_reading_changes_no_feature(qwen: Any) -> None:
    pixels = random_pixels(qwen.pixels, 1)
    plain, read = qwen.vision()(pixels), qwen.vision(("received.-2",))(pixels)
    assert torch.equal(read[0], plain[0] if isinstance(plain, tuple) else plain)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("class_token.-2", "needs a class token.*use received.-2"),
        ("received.-9", "outside the encoder of"),
        ("received.0", "outside the encoder of"),
        ("query", "has no score 'query'"),
    ],
)
def test_scores_that_do_not_exist(qwen: Any, name: str, says: str) -> None:
    with pytest.raises(BadModel, match=says):
        qwen.vision((name,))


@pytest.mark.parametrize("size", [(5, 7), (6, 6), (3, 9), (7, 4), (1, 1), (2, 11)])
def test_windows_are_those_of_transformers(size: tuple[int, int]) -> None:
    shape = torch.tensor([[1, 2 * size[0], 2 * size[1]]])
    index, ends = get_vision_window_index(shape, 2, 24, 4)
    bounds = (ends // 4).tolist()
    expected = {tuple(index[a:b].tolist()) for a, b in zip(bounds, bounds[1:], strict=False)}
    order, spans = windows(shape, 2, 24, 4)
    rows = torch.stack([order] * 4, dim=1).flatten()[None]
    found = [tuple(window[::4].tolist()) for span in spans for window in span.of(rows)]
    assert set(found) == expected and len(found) == len(expected)
    assert len(spans) <= 4 and sum(span.rows for span in spans) == 4 * size[0] * size[1]


def test_the_encoder_shares_the_weights_of_the_model(qwen: Any) -> None:
    mine = {id(weight) for weight in qwen.model.parameters()}
    modules = [qwen.vision(("received.-1",)), qwen.projector()]
    assert all(id(weight) in mine for module in modules for weight in module.parameters())
    assert len([name for module in modules for name in module.state_dict() if "tower" not in name]) < 10


def chain(family: Any, prompt: Tensor, pixels: Tensor, steps: int) -> tuple[list[int], list[Tensor]]:
    """Greedy answer and logits of each step, computed by embedding, encoder, projector and decoder layers."""
    decoder, d = family.decoder, family.dimensions
    seen = family.vision()(pixels)
    features, planes = (seen[0], seen[1:]) if isinstance(seen, tuple) else (seen, ())
    image = prompt[0] == family.image_token_id
    rows = decoder.embed(prompt).clone()
    rows[0, image] = family.projector()(features).flatten(0, 1)
    spread = [torch.zeros_like(rows) for _ in planes]
    for plane, wide in zip(planes, spread, strict=True):
        wide[0, image] = plane.flatten(0, 1)
    positions = family.position_ids(prompt)[:, None]
    segment = Segment(decoder, 0, d.layers, planes=d.planes)
    past = [torch.zeros(0, 1, d.kv_heads, d.head_dim) for _ in range(2 * d.layers)]
    tokens, logits = list[int](), list[Tensor]()
    for _ in range(steps):
        mask, last = torch.ones(1, len(past[0]) + rows.shape[1], dtype=torch.int64), torch.tensor([rows.shape[1] - 1])
        cos, sin = Rotary(decoder, rows.dtype)(positions)
        found, *new = segment(rows, cos, sin, mask, last, *spread, *past)
        past = [torch.cat(pair) for pair in zip(past, new, strict=True)]
        tokens, logits = [*tokens, int(found[0].argmax())], [*logits, found[0]]
        rows = decoder.embed(torch.tensor([[tokens[-1]]]))
        spread = [torch.zeros_like(rows) for _ in planes]
        positions = positions[:, :, -1:] + 1
    return tokens, logits


@pytest.mark.parametrize("images", [1, 2])
def test_the_pieces_equal_generate(qwen: Any, images: int) -> None:
    """Text after the images starts at the largest position so far plus one, and so does each generated token."""
    family = qwen.at((40, 56), images)
    pixels = random_pixels(family.pixels, images, seed=images)
    span = [family.image_token_id] * 35
    ids = [40, 41, 42, *span, 43, *(span + [44] if images == 2 else []), 45, 46]
    prompt = torch.tensor([ids])
    expected = family.model.generate(
        **family.inputs(prompt, pixels.numpy()),
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=5,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        eos_token_id=None,
    )
    tokens, logits = chain(family, prompt, pixels, 5)
    assert tokens == expected.sequences[0, len(ids) :].tolist()
    for ours, theirs in zip(logits, expected.logits, strict=True):
        torch.testing.assert_close(ours, theirs[0], rtol=1e-4, atol=1e-4)
    positions = family.position_ids(prompt)
    assert positions.shape == (3, len(ids)) and int(positions[0, 38]) == 3 + 7 < 38


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rotary_positions_equal_those_of_transformers(qwen: Any, dtype: torch.dtype) -> None:
    own, rows = qwen.model.model.language_model.rotary_emb, torch.zeros(2, 9, 1, dtype=dtype)
    for positions in (torch.randint(0, 30000, (3, 2, 9)), torch.randint(0, 400, (2, 9))):
        for ours, theirs in zip(qwen.decoder.rotary(rows, positions), own(rows, positions), strict=True):
            assert torch.equal(ours, theirs) and ours.dtype == dtype


def test_inputs_are_those_of_the_processor(qwen: Any) -> None:
    """For an image of the bucket's size, with the prompt of the chat template."""
    picture = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    text = "<|vision_start|><|image_pad|><|vision_end|> what is it"
    expected = qwen.processor(images=[Image.fromarray(picture)], text=text, return_tensors="pt")
    given = qwen.inputs(expected["input_ids"], pixel_values(Image.fromarray(picture), qwen.preprocess))
    assert set(given) == set(expected) - {"attention_mask"}
    for name, tensor in given.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("grid", [(1, 1), (3, 3), (2, 5), (5, 7)])
@pytest.mark.parametrize("cls", FAMILIES[:2])
def test_downsampled_equals_transformers_encoder(cls: type[qwen2_vl.Family], grid: tuple[int, int]) -> None:
    family: Any = cls.tiny().at((40, 56))
    pixels = random_pixels(family.pixels, 2)
    features, index = family.vision(grid=grid)(pixels)
    size = (8 * grid[0], 8 * grid[1])
    small = pixels if grid == (5, 7) else F.interpolate(pixels, size=size, mode="bicubic", antialias=True)
    expected = family.model.get_image_features(**patches_of(family.at(size), small)).pooler_output
    torch.testing.assert_close(family.projector()(features), torch.stack(list(expected)), rtol=1e-4, atol=1e-4)
    assert index.shape == (2, grid[0] * grid[1]) and bool((index.diff() > 0).all()) and int(index.max()) < 35


def test_smaller_images_that_are_refused() -> None:
    with pytest.raises(BadModel, match="DeepStack planes.*use another method"):
        qwen3_vl.Family.tiny().at((40, 56)).vision(grid=(2, 2))
    with pytest.raises(BadSchedule, match="6 x 3 tokens must be within 1 x 1 and 5 x 7"):
        qwen2_vl.Family.tiny().at((40, 56)).vision(grid=(6, 3))


@pytest.mark.parametrize(
    ("size", "says"),
    [
        ((40, 57), "57x40 is not one that the model keeps: .* of 8, of 64 to 2400 .* nearest: 56x40"),
        ((80, 80), "80x80 is not .* nearest: 48x48"),
        ((4, 4), "4x4 is not .* nearest: 8x8$"),
        ((8, 2400), "2400x8 is not .* no side over 200 x the other; the nearest: "),
    ],
)
def test_buckets_that_are_refused(qwen: Any, size: tuple[int, int], says: str) -> None:
    with pytest.raises(BadModel, match=says):
        _ = qwen.at(size).bucket


def test_the_default_bucket_is_what_the_processor_makes_of_a_square(qwen: Any) -> None:
    family = copy.deepcopy(qwen).at()
    assert family.bucket == (48, 48) and family.grids == ((6, 6),)
    family.processor.image_processor.size = {"shortest_edge": 3136, "longest_edge": 1003520}
    assert family.bucket == (448, 448)


def test_a_processor_that_resizes_nothing_has_no_bounds(qwen: Any) -> None:
    family = copy.deepcopy(qwen).at((80, 80))
    family.processor.image_processor.do_resize = False
    assert family.bucket == (80, 80)


def test_a_sliding_window_bounds_the_context(windowed: Any) -> None:
    """Within the window, attention is plain causal."""
    family = copy.deepcopy(windowed)
    text = family.model.config.text_config
    assert family.dimensions.context == text.max_position_embeddings
    text.use_sliding_window, text.sliding_window = True, 100
    assert family.dimensions.context == 100


def test_the_graph_equals_torch(qwen: Any, tmp_path: Path) -> None:
    """Windows of one size share one fused attention."""
    vision = qwen.at((48, 40)).vision(("received.-2", "patch_key.-2"))
    model = check_in_onnx(vision, (3, 48, 40), 23, tmp_path)
    fused = [node for node in model.graph.node if node.op_type == "Attention"]
    assert len(fused) == sum(len(spans) for spans in vision.spans)


def test_windows_in_half_precision_for_the_oldest_opset(windowed: Any, tmp_path: Path) -> None:
    family = copy.deepcopy(windowed).at((48, 40))
    family.to(torch.float16)
    check_in_onnx(family.vision(), (3, 48, 40), 20, tmp_path, tolerance=0.02)
