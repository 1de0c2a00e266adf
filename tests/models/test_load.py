# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor

from secateur.demo import model_directory
from secateur.errors import BadModel
from secateur.models.base import Family, fingerprint, load
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_directory(), tmp_path / "model"))


def test_a_directory_is_the_demo(demo: Family, copy: Path) -> None:
    again = load(str(copy))
    assert again.identity == demo.identity
    assert again.source == str(copy) and demo.source == "demo"


def test_a_schedule_fits_every_dtype(tmp_path: Path, demo: Family) -> None:
    """Weights stored in fp32 do not survive fp16; the identity is that of the file."""
    again = load("demo")
    with torch.no_grad():
        for weight in again.model.parameters():
            weight.mul_(1.0001)
    again.model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        shutil.copy(model_directory() / name, tmp_path)
    full, half = load(str(tmp_path)), load(str(tmp_path), torch.float16)
    assert half.dtype == torch.float16 and full.dtype == torch.float32
    assert half.decoder.rotary.inv_freq.dtype == torch.float32
    assert half.identity == full.identity != demo.identity


def test_fingerprints_tell_weights_apart_but_not_storage(demo: Family) -> None:
    half = load("demo", torch.float16)
    assert half.identity == demo.identity
    with torch.no_grad():
        next(half.model.parameters()).view(-1)[0] += 1
    assert fingerprint(half.model) != demo.identity.fingerprint


def test_prompt_and_pixels_equal_the_processor(demo: Family) -> None:
    """Token for token and pixel for pixel what transformers' own processor makes of a chat."""
    processor = AutoProcessor.from_pretrained(model_directory())
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), np.uint8))
    question, further = "what color is the seven ?", "where is it ?"
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}
    text = processor.apply_chat_template([user], add_generation_prompt=True)
    expected = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)
    ids = expected["input_ids"][0].tolist()
    tokenizer = Tokenizer.read(demo.prompt, model_directory() / "tokenizer.json")
    vision = [demo.model.config.image_token_id] * demo.layout.vision_tokens
    ours = [*demo.prompt.head, *vision, *tokenizer.first(question)]
    assert ours == ids
    np.testing.assert_allclose(pixel_values(image, demo.preprocess), expected["pixel_values"].numpy(), atol=1 / 255)

    answer = {"role": "assistant", "content": [{"type": "text", "text": "red"}]}
    second = {"role": "user", "content": [{"type": "text", "text": further}]}
    text = processor.apply_chat_template([user, answer, second], add_generation_prompt=True)
    long = processor(text=text, images=image, return_tensors="pt", add_special_tokens=False)["input_ids"][0].tolist()
    red = processor.tokenizer.convert_tokens_to_ids("red")
    assert [*ours, red, *tokenizer.next(further)] == long


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda d: (d / "config.json").unlink(), "cannot be read"),
        (lambda d: (d / "config.json").write_text("{"), "cannot be read"),
        (lambda d: (d / "config.json").write_text(json.dumps({"model_type": "bert"})), "is a 'bert'; supported: llava"),
        (lambda d: (d / "model.safetensors").unlink(), "cannot be loaded"),
        (lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"), "cannot be loaded"),
        (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 100), "cannot be loaded"),
        (lambda d: (d / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_broken_checkpoints(copy: Path, break_it: object, message: str) -> None:
    break_it(copy)  # type: ignore[operator]
    with pytest.raises(BadModel, match=message) as problem:
        load(str(copy))
    assert "\n" not in str(problem.value)


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    weights = load_file(copy / "model.safetensors")
    name = next(n for n in weights if "down_proj" in n)
    del weights[name]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BadModel, match="lacks 1 weights, the first is .*down_proj"):
        load(str(copy))


@pytest.mark.parametrize("name", ["no-such-thing", "./nowhere", "/nowhere/at/all", "a/b/c"])
def test_what_is_no_model(name: str) -> None:
    with pytest.raises(BadModel, match="is neither a directory nor a hub id"):
        load(name)
