# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.calibration.capture import capture
from secateur.calibration.samples import QUESTION, Sample, samples
from secateur.errors import BadImage, InputError
from secateur.models.base import Family
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer

BOTH = frozenset({"similarity", "attention"})


def pictures(count: int) -> list[Sample]:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)) for _ in range(count)]
    return [Sample(image, f"w{i} w2 w3") for i, image in enumerate(images)]


def test_equals_what_transformers_reports(tiny: Family) -> None:
    """Hidden states and attention maps of the whole model in eager mode are the oracle."""
    chosen = pictures(3)
    found = capture(tiny, chosen, BOTH)
    tokenizer = Tokenizer(tiny.prompt, copy.deepcopy(tiny.tokenizer.backend_tokenizer))
    layout = tiny.layout
    image = slice(layout.image_start, layout.image_start + layout.vision_tokens)
    model = tiny.model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        for i, sample in enumerate(chosen):
            ids = [*tiny.prompt.head, *[3] * layout.vision_tokens, *tokenizer.first(sample.question)]
            pixels = torch.from_numpy(pixel_values(sample.image, tiny.preprocess))
            out = model(
                input_ids=torch.tensor([ids]), pixel_values=pixels, output_hidden_states=True, output_attentions=True
            )
            # transformers puts the final norm on the last hidden state, so the last layer cannot be read there.
            for layer in range(tiny.dimensions.layers - 1):
                pair = [out.hidden_states[layer + k][0, image] for k in (0, 1)]
                expected = torch.nn.functional.cosine_similarity(pair[0], pair[1], dim=-1).numpy()
                np.testing.assert_allclose(found.similarity[layer, i], expected, atol=1e-5)
            for layer in range(tiny.dimensions.layers):
                share = out.attentions[layer][0, :, -1, image].sum(dim=-1).mean()
                assert found.attention[layer, i] == pytest.approx(float(share), abs=1e-5)
    finally:
        model.set_attn_implementation(before)


def test_is_deterministic_and_tells_its_progress(tiny: Family) -> None:
    told: list[tuple[int, int]] = []
    first = capture(tiny, pictures(3), BOTH, progress=lambda done, total: told.append((done, total)))
    second = capture(tiny, pictures(3), BOTH)
    assert np.array_equal(first.similarity, second.similarity)
    assert np.array_equal(first.attention, second.attention)
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_measures_only_what_is_wanted(tiny: Family) -> None:
    assert capture(tiny, pictures(1), frozenset()).samples == 0
    found = capture(tiny, pictures(1), frozenset({"attention"}))
    assert found.similarity.shape[1] == 0 and found.attention.shape == (tiny.dimensions.layers, 1)


def test_generated_samples() -> None:
    first, second = samples("demo", None, 5, 3), samples("demo", None, 5, 3)
    assert [s.question for s in first] == [s.question for s in second]
    assert all(a.image.tobytes() == b.image.tobytes() for a, b in zip(first, second, strict=True))


def test_samples_from_files(tmp_path: Path) -> None:
    for i in range(4):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    assert [s.question for s in samples("m", tmp_path, 3, 0)] == [QUESTION] * 3
    lines = [{"image": f"{i}.png", "text": f"what {i}"} for i in range(4)]
    (tmp_path / "q.jsonl").write_text("\n".join(json.dumps(line) for line in lines) + "\n\n")
    assert {s.question for s in samples("m", tmp_path / "q.jsonl", 4, 0)} == {f"what {i}" for i in range(4)}


@pytest.mark.parametrize(
    ("content", "count", "message"),
    [
        ("", 1, "holds 0 samples, fewer than 1"),
        ('{"image": "0.png", "text": "x"}', 2, "holds 1 samples, fewer than 2"),
        ("nonsense", 1, "line 1 is not"),
        ('{"image": "0.png"}', 1, "line 1 is not"),
        ("[]", 1, "line 1 is not"),
    ],
)
def test_bad_sample_files(tmp_path: Path, content: str, count: int, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        samples("m", tmp_path / "q.jsonl", count, 0)


def test_bad_sample_requests(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs --samples"):
        samples("some/model", None, 1, 0)
    with pytest.raises(InputError, match="must be at least 1"):
        samples("demo", None, 0, 0)
    with pytest.raises(InputError, match="does not exist"):
        samples("m", tmp_path / "none.jsonl", 1, 0)
    (tmp_path / "q.jsonl").write_text('{"image": "none.png", "text": "x"}')
    with pytest.raises(BadImage):
        samples("m", tmp_path / "q.jsonl", 1, 0)
