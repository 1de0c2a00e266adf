# SPDX-License-Identifier: Apache-2.0
"""The model in the package, and its sample pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from secateur.demo import model_directory, sample_directory
from secateur.demo.scenes import KINDS, SceneSample, samples, write_pictures
from secateur.demo.train import answers


@pytest.fixture(scope="module")
def model() -> Any:
    # Any, because transformers types the parts of a config as "dictionary or config or None".
    return AutoModelForImageTextToText.from_pretrained(model_directory(), dtype=torch.float32)


def test_size() -> None:
    files = list(model_directory().iterdir())
    assert sum(each.stat().st_size for each in files) <= 8_000_000
    assert {each.suffix for each in files} <= {".json", ".jinja", ".safetensors"}


def test_weights_are_fp16() -> None:
    with safe_open(model_directory() / "model.safetensors", framework="pt") as stored:
        assert {stored.get_slice(name).get_dtype() for name in stored.keys()} == {"F16"}


def test_architecture(model: Any) -> None:
    vision, text = model.config.vision_config, model.config.text_config
    assert model.config.vision_feature_layer == -2
    assert model.config.vision_feature_select_strategy == "default"
    assert text.num_hidden_layers >= 8
    assert text.num_key_value_heads < text.num_attention_heads
    assert (vision.image_size // vision.patch_size) ** 2 == 144
    with torch.inference_mode():
        features = model.model.get_image_features(torch.zeros(1, 3, 96, 96)).pooler_output
    assert features[0].shape == (144, text.hidden_size)
    assert isinstance(model, LlavaForConditionalGeneration)


def test_processor_makes_144_image_tokens(model: Any) -> None:
    processor: Any = AutoProcessor.from_pretrained(model_directory())
    assert isinstance(processor, LlavaProcessor)
    inputs = processor(images=Image.new("RGB", (120, 100)), text="<s>USER: <image>\n", return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 96, 96)
    assert (inputs["input_ids"] == model.config.image_token_index).sum() == 144


def test_it_answers() -> None:
    asked = list(samples("test", 102, seed=1))
    right = [answer == each.answer for each, answer in zip(asked, answers(model_directory(), asked), strict=True)]
    assert sum(right) / len(right) >= 0.9


def test_it_states_its_accuracy() -> None:
    report = json.loads((model_directory() / "training.json").read_text())
    assert set(report["accuracy"]) == {"overall", *KINDS}


def test_pictures_are_the_generators(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    index = json.loads((sample_directory() / "samples.json").read_text())
    assert index == json.loads((tmp_path / "samples.json").read_text())
    assert {each.name for each in sample_directory().iterdir()} == {"samples.json", *index}
    for name in index:
        shipped, made = Image.open(sample_directory() / name), Image.open(tmp_path / name)
        assert shipped.size == (96, 96)
        assert shipped.tobytes() == made.tobytes()


def test_it_answers_about_the_pictures() -> None:
    index = json.loads((sample_directory() / "samples.json").read_text())
    asked = [
        SceneSample(Image.open(sample_directory() / name), each["question"], each["answer"], each["kind"])
        for name, entries in index.items()
        for each in entries
    ]
    right = [answer == each.answer for each, answer in zip(asked, answers(model_directory(), asked), strict=True)]
    assert sum(right) / len(right) >= 0.9
