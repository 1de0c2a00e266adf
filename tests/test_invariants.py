# SPDX-License-Identifier: Apache-2.0
"""What must always be true of a bundle, on the tiny model of every family with every method."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from secateur import methods, plugins
from secateur.artifacts import read_json
from secateur.errors import BadSchedule
from secateur.export.bundle import Exported, export
from secateur.export.targets import target
from secateur.methods.base import GateInputs, GateSite
from secateur.models.base import Family
from secateur.runtime import Pipeline
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.prompt import Tokenizer
from tests.reference import masked_logits, masked_run

METHODS = plugins.names(methods)
QUESTION = "w1 w5 w9 w3"
LONGER = "w4 w4 w8 w2 w7 w30"


@pytest.fixture(scope="module")
def ort(tiny_bundle: tuple[Path, Exported]) -> Iterator[Pipeline]:
    with Pipeline.load(tiny_bundle[0]) as vlm:
        yield vlm


@pytest.fixture(scope="module")
def eager(tiny_bundle: tuple[Path, Exported], tiny: Family) -> Iterator[Pipeline]:
    from secateur.runtime.backends.torch import Backend
    from secateur.runtime.bundle import Bundle

    bundle = Bundle.load(tiny_bundle[0])
    with Pipeline(bundle, Backend(bundle, family=tiny)) as vlm:
        yield vlm


def picture(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8))


def tail(family: Family, question: str) -> list[int]:
    import copy

    return Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer)).first(question)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max())


def kept_by_layer(vlm: Pipeline, schedule: str, kept: tuple[tuple[int, ...], ...]) -> dict[int, tuple[int, ...]]:
    gates = vlm.bundle.manifest.schedules[schedule].gates
    return {gate.layer: indices for gate, indices in zip(gates, kept, strict=True)}


def test_full_equals_generate(ort: Pipeline, tiny: Family) -> None:
    image = picture(0)
    prompt = [*tiny.prompt.head, *[3] * tiny.layout.vision_tokens, *tail(tiny, QUESTION)]
    assert tiny.model.config.image_token_id == 3
    pixels = torch.from_numpy(pixel_values(image, tiny.preprocess))
    expected = tiny.model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        pixel_values=pixels,
        max_new_tokens=12,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    answer = ort.ask(image, QUESTION, schedule="full", max_new_tokens=12)
    assert list(answer.tokens) == expected.sequences[0, len(prompt) :].tolist()
    assert close(answer.first_logits, expected.logits[0][0].numpy())
    assert answer.kept == ()


@pytest.mark.parametrize("method", METHODS)
def test_keeping_everything_equals_full(ort: Pipeline, method: str) -> None:
    full = ort.ask(picture(1), QUESTION, schedule="full", max_new_tokens=8)
    pruned = ort.ask(picture(1), QUESTION, schedule=f"{method}-all", max_new_tokens=8)
    assert pruned.tokens == full.tokens
    assert close(pruned.first_logits, full.first_logits)


@pytest.mark.parametrize("method", [*METHODS, "btp-text"])
@pytest.mark.parametrize("seed", range(3))
def test_pruned_equals_masked(ort: Pipeline, tiny: Family, method: str, seed: int) -> None:
    """Prefill and every decode step: step t is a fresh masked run of the longer sequence with the same kept indices."""
    image = picture(seed)
    answer = ort.ask(image, QUESTION, schedule=method, max_new_tokens=6)
    kept = kept_by_layer(ort, method, answer.kept)
    rows = tail(tiny, QUESTION)
    pixels = pixel_values(image, tiny.preprocess)
    reference = masked_logits(tiny, pixels, [*rows, *answer.tokens], kept)
    start = tiny.layout.image_start + tiny.layout.vision_tokens + len(rows) - 1
    assert close(answer.first_logits, reference[start])
    greedy = reference[start : start + len(answer.tokens)].argmax(axis=-1)
    assert list(answer.tokens) == greedy.tolist()


@pytest.mark.parametrize("method", [*METHODS, "btp-text"])
def test_gates_read_what_they_should(ort: Pipeline, tiny: Family, method: str) -> None:
    """Selectors run again on what transformers computes: rows entering the layer, keys and query of the one before."""
    questions = [QUESTION, LONGER, "w2"]
    answers = ort.ask([picture(i) for i in range(3)], questions, schedule=method, max_new_tokens=1)
    schedule = ort.bundle.schedule(method)
    selector_class = plugins.load(methods, schedule.method, "method").Method
    start = tiny.layout.image_start
    for i, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        kept = kept_by_layer(ort, method, answer.kept)
        rows = tail(tiny, question)
        seen = masked_run(tiny, pixel_values(picture(i), tiny.preprocess), rows, kept)
        alive = np.arange(tiny.layout.vision_tokens)
        for gate, found in zip(schedule.gates, answer.kept, strict=True):
            text = list(range(start + tiny.layout.vision_tokens, start + tiny.layout.vision_tokens + len(rows)))
            stay = [*range(start), *(start + alive), *text]
            query, key = seen.query[gate.layer - 1][0], seen.key[gate.layer - 1][0]
            selector = selector_class.selector(GateSite(gate, len(alive), start, tiny.layout.grid, tiny.dimensions))
            given = GateInputs(
                vision=seen.before[gate.layer][:, start + alive],
                vision_index=torch.from_numpy(alive)[None],
                attention_mask=torch.ones(1, len(stay), dtype=torch.int64),
                query=query[:, text].mean(dim=1)[None] if selector.query == "text" else query[:, -1][None],
                key=key[:, stay].transpose(0, 1)[:, None],
            )
            alive = alive[selector(given)[0].numpy()]
            assert tuple(alive.tolist()) == found, (method, gate.layer)


@pytest.mark.parametrize("method", [*METHODS, "btp-text", "full"])
@pytest.mark.parametrize("seed", range(3))
def test_backends_agree(ort: Pipeline, eager: Pipeline, method: str, seed: int) -> None:
    ours = ort.ask(picture(seed), LONGER, schedule=method, max_new_tokens=6)
    theirs = eager.ask(picture(seed), LONGER, schedule=method, max_new_tokens=6)
    assert ours.kept == theirs.kept
    assert ours.tokens == theirs.tokens
    assert close(ours.first_logits, theirs.first_logits)


@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_follow_up_equals_one_long_conversation(ort: Pipeline, tiny: Family, method: str) -> None:
    image = picture(2)
    chat = ort.open(image, schedule=method, capacity=128)
    first = chat.ask(QUESTION, max_new_tokens=4)
    second = chat.ask(LONGER, max_new_tokens=4)
    import copy

    tokenizer = Tokenizer(tiny.prompt, copy.deepcopy(tiny.tokenizer.backend_tokenizer))
    spoken = [t for t in first.tokens if t not in tiny.prompt.stop]
    rows = [*tokenizer.first(QUESTION), *spoken, *tokenizer.next(LONGER)]
    kept = kept_by_layer(ort, method, first.kept)
    reference = masked_logits(tiny, pixel_values(image, tiny.preprocess), rows, kept)
    assert close(second.first_logits, reference[-1])


@pytest.mark.parametrize("method", [*METHODS, "full"])
def test_a_batch_equals_single_runs(ort: Pipeline, method: str) -> None:
    images, questions = [picture(0), picture(1), picture(2)], [QUESTION, LONGER, "w2"]
    together = ort.ask(images, questions, schedule=method, max_new_tokens=5)
    for image, question, answer in zip(images, questions, together, strict=True):
        alone = ort.ask(image, question, schedule=method, max_new_tokens=5)
        assert answer.kept == alone.kept
        assert answer.tokens == alone.tokens
        assert close(answer.first_logits, alone.first_logits)


def test_two_exports_are_equal(tiny: Family, tiny_bundle: tuple[Path, Exported], tmp_path: Path) -> None:
    from secateur.artifacts import Schedule

    folder, first = tiny_bundle
    schedules = [
        read_json(Schedule, folder / first.manifest.schedules[name].file, BadSchedule)
        for name in first.manifest.schedules
        if name != "full"
    ]
    second = export(tiny, schedules, target("cpu"), tmp_path / "again", verify=False)
    assert second.manifest == first.manifest
