# SPDX-License-Identifier: Apache-2.0
"""The untrained model, its words and its prompt."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlavaProcessor

from secateur.demo._dense import DenseScenes
from secateur.demo._language import HEAD, Turns
from secateur.demo.build import VOCABULARY, build_model, build_processor
from secateur.demo.scenes import questions, scene


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return build_processor()


@pytest.fixture(scope="module")
def model() -> Any:
    return build_model()


def conversation(*turns: str) -> Any:
    """Messages: questions and answers in turn, the image in the first."""
    messages: list[dict[str, Any]] = []
    for index, text in enumerate(turns):
        image = [{"type": "image"}] if index == 0 else []
        role = ("user", "assistant")[index % 2]
        messages.append({"role": role, "content": [*image, {"type": "text", "text": text}]})
    return messages


def test_words(processor: LlavaProcessor) -> None:
    def split(text: str) -> list[str]:
        words: list[str] = processor.tokenizer.tokenize(text)
        return words

    assert split("What color is the seven?") == ["what", "color", "is", "the", "seven", "?"]
    assert split("USER: <image>\nis it at top-left ?") == [
        *("user", ":", "<image>", "\n", "is", "<unk>", "at", "top-left", "?"),
    ]
    assert processor.tokenizer.decode(processor.tokenizer("top-left").input_ids) == "top-left"
    assert len(set(VOCABULARY)) == len(VOCABULARY) == len(processor.tokenizer)


def test_prompt(processor: LlavaProcessor) -> None:
    first = processor.apply_chat_template(conversation("what digit is red ?"), add_generation_prompt=True)
    assert first == "<s>USER: <image>\nwhat digit is red ? ASSISTANT:"
    further = conversation("what digit is red ?", "seven", "where is the red digit ?")
    text = processor.apply_chat_template(further, add_generation_prompt=True)
    assert text == first + " seven</s>USER: where is the red digit ? ASSISTANT:"
    plain: Any = [{"role": "user", "content": "is there a one ?"}]
    assert processor.apply_chat_template(plain, add_generation_prompt=True) == "<s>USER: is there a one ? ASSISTANT:"


def test_every_question_is_in_the_vocabulary(processor: LlavaProcessor) -> None:
    asked = [each for seed in range(100) for each in questions(scene(seed), np.random.default_rng(seed))]
    words = {word for each in asked for word in (*each.text.split(), each.answer)}
    assert words <= set(VOCABULARY)


def test_training_pixels_are_the_processors(processor: LlavaProcessor) -> None:
    batch = DenseScenes(seed=0, batch=2)[0]
    images = [scene(index, "train", (2, 9), repeats=True, deformation=1.6).image for index in range(2)]
    expected = processor.image_processor(images, return_tensors="pt").pixel_values
    assert torch.allclose(batch["pixel_values"], expected, atol=1e-5)


def test_a_packed_turn_is_a_prompt_on_its_own(processor: LlavaProcessor, model: Any) -> None:
    """Logits of packed turns equal those of the same questions asked alone."""
    turns = Turns(seed=0, steps=10, batch=1, chain_share=0.0)
    batch = next(each for each in (turns[step] for step in range(10)) if each["sort"] == "questions")
    row, positions = batch["input_ids"][0], batch["position_ids"][0]
    inner = model.model
    with torch.inference_mode():
        patches = inner.get_image_features(batch["pixel_values"]).pooler_output[0]
        embedded = inner.language_model.embed_tokens(row)
        embedded[row == VOCABULARY.index("<image>")] = patches
        packed = inner.language_model(
            inputs_embeds=embedded[None], position_ids=positions[None], attention_mask=batch["attention_mask"]
        ).last_hidden_state[0]
        for start in (len(HEAD), len(HEAD) + 10):
            words = row[start : start + 10]
            words = words[words != VOCABULARY.index("<pad>")]
            alone = torch.cat([row[: len(HEAD)], words])
            text = processor.tokenizer.decode(words[:-4])
            prompt = processor.apply_chat_template(conversation(text), add_generation_prompt=True)
            image = scene((1 << 39) + 0, "train", deformation=1.3).image
            ids = processor(images=image, text=prompt, return_tensors="pt").input_ids[0]
            assert ids.tolist() == alone[:-2].tolist()
            hidden = model(
                input_ids=alone[None], pixel_values=batch["pixel_values"], output_hidden_states=True
            ).hidden_states[-1][0, len(HEAD) :]
            assert torch.allclose(packed[start : start + len(words)], hidden, atol=1e-4)


def test_seed(model: Any) -> None:
    before = torch.random.get_rng_state()
    again, other = build_model(0), build_model(1)
    assert torch.equal(torch.random.get_rng_state(), before)
    weight = "model.language_model.layers.3.mlp.up_proj.weight"
    assert torch.equal(again.state_dict()[weight], model.state_dict()[weight])
    assert not torch.equal(other.state_dict()[weight], model.state_dict()[weight])
