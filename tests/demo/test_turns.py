# SPDX-License-Identifier: Apache-2.0
"""Batches of stage 2: their kinds, and a conversation in the form of the chat template."""

from collections import Counter
from typing import Any

import pytest
import torch

from secateur.demo._language import HEAD, ROOM, Turns
from secateur.demo._loop import Batch
from secateur.demo.build import VOCABULARY, build_processor
from secateur.demo.scenes import COLOR_WORDS, DIGIT_WORDS, POSITION_WORDS

STEPS = 60


@pytest.fixture(scope="module")
def batches() -> list[Batch]:
    turns = Turns(seed=0, steps=STEPS, batch=1)
    return [turns[step] for step in range(STEPS)]


def words(batch: Batch) -> list[str]:
    return [VOCABULARY[index] for index in batch["input_ids"][0, len(HEAD) :].tolist()]


def test_chains_come_first_and_stay(batches: list[Batch]) -> None:
    sorts = [each["sort"] for each in batches]
    assert set(sorts[:6]) == {"chains"}
    later = Counter(sorts[6:])
    assert later["questions"] > later["chains"] > 0
    assert later["conversation"] > 0


def test_all_batches_have_one_shape(batches: list[Batch]) -> None:
    length = len(HEAD) + ROOM
    for each in batches:
        assert each["input_ids"].shape == each["weights"].shape == (1, length)
        assert each["position_ids"].shape == (1, length)
        assert each["attention_mask"].shape == (1, 1, length, length)
        assert "<unk>" not in words(each)


def test_only_what_must_be_seen_is_asked_of_a_chain(batches: list[Batch]) -> None:
    chain = batches[-1] if batches[-1]["sort"] == "chains" else batches[5]
    attributes = {*DIGIT_WORDS, *COLOR_WORDS, *POSITION_WORDS}
    weights = chain["weights"][0, len(HEAD) :].tolist()
    for place, (word, weight) in enumerate(zip(words(chain), weights, strict=True)):
        if word == ";":
            assert weight == 0
            assert set(words(chain)[place + 1 : place + 4]) <= attributes
            assert weights[place + 1 : place + 4] == [0, 1, 1]


def test_a_turn_sees_the_head_and_itself(batches: list[Batch]) -> None:
    batch = next(each for each in batches if each["sort"] == "questions")
    seen = batch["attention_mask"][0, 0] == 0
    row = len(HEAD) + 13  # in the second of the turns of ten tokens
    expected = torch.zeros(seen.shape[1], dtype=torch.bool)
    expected[: len(HEAD)] = True
    expected[len(HEAD) + 10 : row + 1] = True
    assert torch.equal(seen[row], expected)
    assert batch["position_ids"][0, row] == len(HEAD) + 3


def test_conversation_is_the_chat_templates(batches: list[Batch]) -> None:
    processor: Any = build_processor()
    told = words(next(each for each in batches if each["sort"] == "conversation"))
    asked: list[str] = []
    messages: list[dict[str, Any]] = []
    # Read the first three turns back: question "assistant" ":" answer "</s>" "user" ":" question ...
    rest = told
    for _ in range(3):
        end = rest.index("assistant")
        asked, answer = rest[:end], rest[end + 2]
        image = [] if messages else [{"type": "image"}]
        messages.append({"role": "user", "content": [*image, {"type": "text", "text": " ".join(asked)}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": answer}]})
        rest = rest[end + 6 :]
    tokens = processor.tokenizer.tokenize(processor.apply_chat_template(messages))
    after_image = tokens[tokens.index("\n") + 1 :]
    assert after_image == told[: len(after_image)]
    assert len(after_image) >= 20
