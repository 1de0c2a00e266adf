# SPDX-License-Identifier: Apache-2.0
"""PaliGemma 1 and 2 against transformers' own classes, piece by piece."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import Gemma2Config, GemmaConfig

from secateur.errors import BadModel
from secateur.families import paligemma
from secateur.families.base import Family
from tests.model_fixtures.exporting import check_in_onnx, random_pixels
from tests.model_fixtures.stepping import check_steps, question_ids
from tests.model_fixtures.towers import eager_attentions

KINDS: dict[str, dict[str, Any]] = {
    "gemma": {"kind": GemmaConfig},
    "gemma2": {"kind": Gemma2Config, "query_pre_attn_scalar": 16},
    "gemma2-capped": {
        "kind": Gemma2Config,
        "query_pre_attn_scalar": 24,
        "attn_logit_softcapping": 0.7,
        "final_logit_softcapping": 1.5,
    },
}


@pytest.fixture(scope="module", params=KINDS)
def family(request: pytest.FixtureRequest) -> Family:
    made: Family = paligemma.Family.random(**KINDS[request.param])
    return made


@pytest.fixture(scope="module")
def tiny() -> Family:
    return paligemma.Family.tiny()


def tower_of(family: Family) -> Any:
    return family.model.model.vision_tower


@pytest.mark.parametrize("batch", [1, 2])
def test_vision_and_projector_equal_transformers(tiny: Family, batch: int) -> None:
    pixels = random_pixels(tiny.pixels, batch)
    found = tiny.projector()(tiny.vision()(pixels))
    torch.testing.assert_close(found, tiny.model.get_image_features(pixels).pooler_output, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (2, 5), (4, 4)])
def test_a_smaller_image(tiny: Family, grid: tuple[int, int]) -> None:
    """Includes the last norm, unlike the features of LLaVA."""
    pixels = random_pixels(tiny.pixels)
    features, index = tiny.vision(grid=grid)(pixels)
    small = F.interpolate(pixels, size=(grid[0] * 4, grid[1] * 4), mode="bicubic", antialias=True)
    expected = tower_of(tiny)(small, interpolate_pos_encoding=True).last_hidden_state
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert index.shape == (2, grid[0] * grid[1])


@pytest.mark.parametrize("images", [1, 2])
def test_rows_are_those_of_the_processor(tiny: Family, images: int) -> None:
    layout = tiny.at(images=images).layout
    assert layout.head == () and layout.rows == 36 * images == layout.vision_tokens
    assert layout.positions == (tuple(range(1, 36 * images + 1)),) and layout.next_position == 36 * images + 1
    assert tiny.prompt.first == ("<bos>", "\n") and tiny.prompt.next is None


def test_another_image_size_is_refused(tiny: Family) -> None:
    with pytest.raises(BadModel, match="takes images of 24x24 only"):
        _ = tiny.at((48, 48)).bucket


@pytest.mark.parametrize("layer", [-1, -2, -3])
def test_scores_equal_eager_attention(tiny: Family, layer: int) -> None:
    pixels, tower = random_pixels(tiny.pixels), tower_of(tiny)
    keys: list[Tensor] = []
    hook = tower.encoder.layers[layer].self_attn.k_proj.register_forward_hook(lambda m, given, out: keys.append(out))
    features, received, given, key = tiny.vision(tuple(f"{k}.{layer}" for k in ("received", "given", "patch_key")))(
        pixels
    )
    hook.remove()
    weights = eager_attentions(tower, pixels)[layer]
    assert torch.equal(features, tiny.vision()(pixels))
    torch.testing.assert_close(received, weights.sum(2).mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given, weights.sum(3).mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(key, keys[0].unflatten(-1, (2, -1)).mean(2))


@pytest.mark.parametrize("opset", [20, 23])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_vision_in_onnx(opset: int, dtype: torch.dtype, tmp_path: Path) -> None:
    family = paligemma.Family.tiny()
    family.to(dtype)
    vision = family.vision(("received.-2", "patch_key.-1"))
    check_in_onnx(vision, family.pixels, opset, tmp_path, 1e-4 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("images", [1, 2])
def test_the_decoder_equals_transformers(family: Family, decomposed: bool, images: int) -> None:
    """Rows of a prompt attend to each other; generated rows attend to earlier rows only."""
    check_steps(family.at(images=images), decomposed)


@torch.inference_mode()
def test_the_prompt_is_seen_in_both_directions(tiny: Family) -> None:
    """The last word changes the hidden state of the first image token."""
    pixels = random_pixels(tiny.pixels, 1)
    hidden = [
        tiny.model(**tiny.inputs(torch.tensor([question_ids(tiny, text)]), pixels.numpy()), output_hidden_states=True)
        for text in ("w1 w2", "w1 w3")
    ]
    first, second = (out.hidden_states[2][0, 0] for out in hidden)
    assert (first - second).abs().max() > 1e-3 and tiny.decoder.bidirectional and tiny.dimensions.bidirectional


def test_own_logits(family: Family) -> None:
    pixels = np.random.default_rng(0).normal(size=(1, *family.pixels)).astype(np.float32)
    logits = family.logits(question_ids(family), pixels)
    cap = getattr(family.model.config.text_config, "final_logit_softcapping", None)
    assert logits.shape == (family.dimensions.vocabulary,) and (cap is None or np.abs(logits).max() <= cap)


def test_the_head_is_the_embedding(family: Family) -> None:
    """The weights are shared; the embedding returns scaled rows."""
    head = [p for p in family.decoder.head.parameters()]
    assert len(head) == 1 and head[0] is family.decoder.embed.weight
    rows = family.decoder.embed(torch.tensor([[7]]))
    torch.testing.assert_close(rows[0, 0], head[0][7] * 48**0.5)
