# SPDX-License-Identifier: Apache-2.0
"""Invariants of a bundle on the trained demo model, which has peaked attention and meaningful answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from secateur.demo import model_directory
from secateur.demo.scenes import samples
from secateur.families.base import Family
from secateur.runtime import Bundle, Pipeline
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from tests.checks import close
from tests.reference import masked_logits

ASKED = list(samples("test", 6, 5))


@pytest.fixture(scope="module")
def ort(demo_bundle: tuple[Path, dict[str, Any]]) -> Iterator[Pipeline]:
    with Pipeline.load(demo_bundle[0]) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def eager(demo_bundle: tuple[Path, dict[str, Any]], demo: Family) -> Pipeline:
    from secateur.runtime.backends.torch import Backend

    bundle = Bundle.load(demo_bundle[0])
    return Pipeline(bundle, Backend(bundle, family=demo))


def pruned(vlm: Pipeline) -> str:
    (name,) = (name for name in vlm.schedules if name != "full")
    return name


def rows(demo: Family, question: str) -> list[int]:
    return Tokenizer.read(demo.prompt, model_directory() / "tokenizer.json").first(question)


def test_full_equals_generate(ort: Pipeline, demo: Family) -> None:
    for sample in ASKED:
        prompt = [*demo.layout.ids(demo.image_token_id), *rows(demo, sample.question)]
        expected = demo.model.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            pixel_values=torch.from_numpy(pixel_values(sample.image, demo.preprocess)),
            max_new_tokens=4,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        answer = ort.ask(sample.image, sample.question, schedule="full", max_new_tokens=4)
        assert list(answer.tokens) == expected.sequences[0, len(prompt) :].tolist()
        assert close(answer.first_logits, expected.logits[0][0].numpy())


def test_pruned_equals_masked(ort: Pipeline, demo: Family) -> None:
    name = pruned(ort)
    layers = [gate.layer for gate in ort.bundle.manifest.schedules[name].gates]
    for sample in ASKED:
        answer = ort.ask(sample.image, sample.question, schedule=name)
        kept = dict(zip(layers, answer.kept, strict=True))
        pixels = pixel_values(sample.image, demo.preprocess)
        reference = masked_logits(demo, pixels, rows(demo, sample.question), kept)
        assert close(answer.first_logits, reference[-1])


def test_backends_agree(ort: Pipeline, eager: Pipeline) -> None:
    for sample in ASKED:
        ours = ort.ask(sample.image, sample.question)
        theirs = eager.ask(sample.image, sample.question)
        assert (ours.kept, ours.tokens) == (theirs.kept, theirs.tokens)
        assert close(ours.first_logits, theirs.first_logits)


def test_follow_up_equals_one_long_conversation(ort: Pipeline, demo: Family) -> None:
    name = pruned(ort)
    layers = [gate.layer for gate in ort.bundle.manifest.schedules[name].gates]
    tokenizer = Tokenizer.read(demo.prompt, model_directory() / "tokenizer.json")
    for first, second in zip(ASKED[:3], ASKED[3:], strict=True):
        chat = ort.open(first.image)
        before, after = chat.ask(first.question), chat.ask(second.question)
        spoken = [t for t in before.tokens if t not in demo.prompt.stop]
        whole = [*tokenizer.first(first.question), *spoken, *tokenizer.next(second.question)]
        kept = dict(zip(layers, before.kept, strict=True))
        reference = masked_logits(demo, pixel_values(first.image, demo.preprocess), whole, kept)
        assert close(after.first_logits, reference[-1])
