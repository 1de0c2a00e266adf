# SPDX-License-Identifier: Apache-2.0
"""Checks of a bundle's answers, for every family, method and number of images."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from secateur.bundle.schedule_file import read_schedule
from secateur.errors import BadPrompt
from secateur.export.bundle import Exported
from secateur.families.base import Family
from secateur.runtime import Pipeline
from secateur.runtime.decoder_inputs import TokenBatch
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.receipt import Stopwatch
from secateur.runtime.tokenizer import Tokenizer
from tests.reference import entering, kept_by_layer, masked_logits

QUESTION = "w1 w5 w9 w3"
LONGER = "w4 w4 w8 w2 w7 w30"
Pictures = tuple[Image.Image, ...]


def picture(seed: int, size: tuple[int, int] = (24, 24)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8))


def pictures(family: Family, seed: int) -> Pictures:
    """Return different images, as many as a prompt of the family has."""
    return tuple(picture(100 * seed + i, (24 + 7 * i, 30)) for i in range(family.images))


def given(images: Pictures) -> Any:
    """Return images in the form of an argument of `Pipeline.ask`."""
    return images if len(images) > 1 else images[0]


def pixels(family: Family, images: Pictures) -> np.ndarray:
    return np.concatenate([pixel_values(load_image(image), family.preprocess) for image in images])


def tokenizer(family: Family) -> Tokenizer:
    return Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max())


def reference(
    vlm: Pipeline, family: Family, images: Pictures, name: str, rows: Sequence[int], kept: Any, generated: int = 0
) -> np.ndarray:
    """Return logits [S, V] of the masked reference for the kept tokens, which a gate in the encoder must keep too."""
    schedule = read_schedule(vlm.bundle.path(vlm.bundle.manifest.schedules[name].file))
    seen = entering(family, pixels(family, images), schedule)
    if seen is not None:
        assert seen[0] == list(kept[0])
    return masked_logits(
        family,
        pixels(family, images),
        rows,
        kept_by_layer(vlm.bundle.manifest.schedules[name].gates, kept),
        compact=schedule.positions == "compact",
        route=any(gate.kind == "route" for gate in schedule.gates),
        vision=None if seen is None else seen[1],
        generated=generated,
    )


def check_parity(exported: Exported, name: str) -> None:
    """Check that the export compared the chain, each gate and the segments with torch, and that they are equal."""
    gates = exported.manifest.schedules[name].gates
    found = {parity.name: parity for parity in exported.parity}
    kept = [f"other tokens kept, {name}"] if any(gate.keep for gate in gates) else []
    for what in (f"chain, {name}", *kept, *(gate.graph for gate in gates), "segments against the model"):
        assert what in found, f"the export did not compare '{what}'"
        assert found[what].passed and found[what].error <= 1e-4, f"{what}: error {found[what].error:.1e}"


def check_full(vlm: Pipeline, family: Family) -> None:
    """Check that the schedule without gates has the tokens and logits of transformers' `generate`."""
    images = pictures(family, 0)
    prompt = [*family.layout.ids(family.image_token_id), *tokenizer(family).first(QUESTION)]
    expected = family.model.generate(
        **family.inputs(torch.tensor([prompt]), pixels(family, images)),
        max_new_tokens=8,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = vlm.ask(given(images), QUESTION, schedule="full", max_new_tokens=8)
    assert list(answer.tokens) == expected.sequences[0, len(prompt) :].tolist()
    assert close(answer.first_logits, expected.logits[0][0].float().numpy())
    assert answer.kept == ()


def check_pruned(vlm: Pipeline, family: Family, name: str, seed: int = 0) -> None:
    """Check that the first logits equal the masked reference, and that tokens were dropped as in the receipt."""
    images, rows = pictures(family, seed), tokenizer(family).first(QUESTION)
    answer = vlm.ask(given(images), QUESTION, schedule=name, max_new_tokens=1)
    start = family.layout.rows + len(rows) - 1
    assert close(answer.first_logits, reference(vlm, family, images, name, rows, answer.kept)[start])
    assert answer.kept and len(answer.kept[-1]) < family.layout.vision_tokens
    gates = zip(answer.receipt.gates, answer.kept, strict=True)
    assert all(gate.applied == gate.requested == len(kept) for gate, kept in gates)


def check_decode(vlm: Pipeline, family: Family, name: str, seed: int = 0) -> None:
    """Check that decode step t equals a new masked run of the longer sequence with the same kept tokens.

    A random model repeats one token, which hides wrong positions and caches. So other tokens are fed after the answer,
    and their logits must be equal too.
    """
    images, rows = pictures(family, seed), tokenizer(family).first(QUESTION)
    answer = vlm.ask(given(images), QUESTION, schedule=name, max_new_tokens=5)
    said = [*answer.tokens, *tokenizer(family).first(LONGER)[:4]]
    found = decoded(vlm, family, images, name, rows, said)
    expected = reference(vlm, family, images, name, [*rows, *said], answer.kept, generated=len(said))
    expected = expected[family.layout.rows + len(rows) - 1 :]
    assert list(answer.tokens) == expected[: len(answer.tokens)].argmax(axis=-1).tolist()
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert close(one, other), f"logits of decode step {step} differ"


def decoded(
    vlm: Pipeline, family: Family, images: Pictures, name: str, rows: Sequence[int], said: Sequence[int]
) -> list[np.ndarray]:
    """Return logits [V] after the prompt and after each of the tokens `said`, which are fed one by one."""
    chain, pad = vlm._sizes.first, family.prompt.pad
    first = TokenBatch.prompt(family.layout, [rows], pad)
    cache = chain.cache(1, first.input_ids.shape[1] + len(said), name)
    seen = chain.encode(pixels(family, images), name, Stopwatch())
    logits = [chain.prefill(first, seen, name, cache, Stopwatch()).logits[0]]
    for token in said:
        logits.append(chain.step(TokenBatch.pad([[token]], pad, cache.position), cache)[0].copy())
    return logits


def check_follow_up(vlm: Pipeline, family: Family, name: str) -> str | None:
    """Check that a follow-up question equals one long conversation; return the reason if the family refuses it."""
    images, words = pictures(family, 2), tokenizer(family)
    chat = vlm.open(given(images), schedule=name, capacity=family.layout.rows + 60)
    first = chat.ask(QUESTION, max_new_tokens=3)
    if family.prompt.next is None:
        with pytest.raises(BadPrompt, match="question") as told:
            chat.ask(LONGER)
        return str(told.value)
    second = chat.ask(LONGER, max_new_tokens=3)
    spoken = [token for token in first.tokens if token not in family.prompt.stop]
    rows = [*words.first(QUESTION), *spoken, *words.next(LONGER)]
    assert close(second.first_logits, reference(vlm, family, images, name, rows, first.kept)[-1])
    return None


def check_conversation(vlm: Pipeline, family: Family, questions: Sequence[str]) -> None:
    """Check that each answer of a chat has the tokens of transformers' `generate` on the rendered conversation."""
    images, messages = pictures(family, 0), list[dict[str, Any]]()
    with vlm.open(given(images), "full") as chat:
        for question in questions:
            picture = [] if messages else [{"type": "image"}]
            messages.append({"role": "user", "content": [*picture, {"type": "text", "text": question}]})
            text = family.processor.apply_chat_template(messages, add_generation_prompt=True)
            ids = family.processor(text=[text], images=[list(images)], add_special_tokens=False)["input_ids"]
            given_inputs = family.inputs(torch.tensor(ids), pixels(family, images))
            expected = family.model.generate(**given_inputs)[0, len(ids[0]) :].tolist()
            answer = chat.ask(question)
            assert list(answer.tokens) == expected
            said = family.processor.decode(expected, skip_special_tokens=True)
            assert answer.text == said
            messages.append({"role": "assistant", "content": [{"type": "text", "text": said}]})


def check_batch(vlm: Pipeline, family: Family, name: str) -> None:
    """Check that two samples of different images and lengths have the answers of each sample alone."""
    samples, questions = [pictures(family, 3), pictures(family, 4)], [QUESTION, LONGER]
    together = vlm.ask([given(images) for images in samples], questions, schedule=name, max_new_tokens=4)
    for images, question, answer in zip(samples, questions, together, strict=True):
        alone = vlm.ask(given(images), question, schedule=name, max_new_tokens=4)
        assert answer.kept == alone.kept
        assert answer.tokens == alone.tokens
        assert close(answer.first_logits, alone.first_logits)
