# SPDX-License-Identifier: Apache-2.0
"""Settings for answers: tokens and probabilities are those of transformers' `generate` with the same settings."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig

from secateur.bundle.sampling import Sampling
from secateur.checkpoints.generation import settings as settings_of
from secateur.errors import BadModel, BadPrompt
from secateur.export.bundle import ExportPlan, export
from secateur.export.targets import target
from secateur.families.base import Family
from secateur.load_model import load
from secateur.runtime import Pipeline
from secateur.runtime.sampling import Sampler
from secateur.selection.budget import BudgetRequest
from tests import checks
from tests.conftest import COMPRESSION, method, schedules, tiny_family
from tests.model_fixtures.eager import eager

STOP, SPECIAL = 2, [0, 1, 3, 4]
FEW = [*range(2), *range(3, 40), *range(43, 64)]  # all but the stop token and three words
LENGTH = 24
CASES: dict[str, dict[str, Any]] = {
    "penalty": {"repetition_penalty": 1.3},
    "reward": {"repetition_penalty": 0.8, "no_repeat_ngram_size": 3},
    "pairs": {"no_repeat_ngram_size": 2},
    "single": {"no_repeat_ngram_size": 1},
    "suppressed": {"suppress_tokens": [18, 48]},
    "first": {"begin_suppress_tokens": [18]},
    "words": {"bad_words_ids": [[18, 48], [30], [34, 18, 30], [STOP]]},
    "few": {"suppress_tokens": FEW, "repetition_penalty": 1.5},
    "at least": {"suppress_tokens": FEW, "repetition_penalty": 1.5, "min_new_tokens": 16},
    "rows": {"suppress_tokens": FEW, "repetition_penalty": 1.5, "min_length": 60},
}


@pytest.fixture(scope="module")
def llava() -> Family:
    return tiny_family("llava")


@pytest.fixture(scope="module")
def vlm(llava: Family, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    request = BudgetRequest(compression=COMPRESSION, layers=(1, 3))
    made = schedules(llava, {"btp": method("btp")}, request)
    with eager(llava, tmp_path_factory.mktemp("settings"), made) as opened:
        yield opened


def generated(family: Family, prompt: list[int], images: checks.Pictures, **options: Any) -> list[int]:
    """Return the new tokens of transformers' `generate`."""
    config = GenerationConfig(
        **{"max_new_tokens": LENGTH, "eos_token_id": list(family.prompt.stop), "pad_token_id": 0} | options
    )
    inputs = family.inputs(torch.tensor([prompt]), checks.pixels(family, images))
    found: list[int] = family.model.generate(**inputs, generation_config=config, tokenizer=family.tokenizer)[0].tolist()
    return found[len(prompt) :]


def whole_prompt(family: Family, *tails: list[int]) -> list[int]:
    return [*family.layout.ids(family.image_token_id), *(token for tail in tails for token in tail)]


@pytest.mark.parametrize("name", CASES)
def test_greedy_answers_equal_generate(vlm: Pipeline, llava: Family, name: str) -> None:
    images, options = checks.pictures(llava, 0), CASES[name]
    prompt = whole_prompt(llava, checks.tokenizer(llava).first(checks.QUESTION))
    plain = generated(llava, prompt, images)
    expected = generated(llava, prompt, images, **options)
    assert expected != plain, "the setting must matter, or this test checks nothing"
    answer = vlm.ask(checks.given(images), checks.QUESTION, "full", sampling=Sampling(max_new_tokens=LENGTH), **options)
    assert list(answer.tokens) == expected
    assert answer.receipt.sampling == Sampling(max_new_tokens=LENGTH, **options)


def test_each_end_of_an_answer_is_seen(llava: Family) -> None:
    prompt = whole_prompt(llava, checks.tokenizer(llava).first(checks.QUESTION))
    images = checks.pictures(llava, 0)
    lengths = {name: len(generated(llava, prompt, images, **CASES[name])) for name in ("few", "at least", "rows")}
    assert lengths["few"] < 16 <= lengths["at least"] and lengths["few"] < lengths["rows"]


@pytest.mark.parametrize("family", ["paligemma", "qwen2_5_vl"])
def test_other_families(family: str, tmp_path: Path) -> None:
    """A prompt that is read both ways, and M-RoPE; image tokens count in penalty and n-grams of both."""
    model = tiny_family(family)
    images = checks.pictures(model, 0)
    prompt = whole_prompt(model, checks.tokenizer(model).first(checks.QUESTION))
    with eager(model, tmp_path) as opened:
        for options in ({"repetition_penalty": 1.4, "no_repeat_ngram_size": 3}, {"min_length": len(prompt) + 9}):
            expected = generated(model, prompt, images, **options)
            answer = opened.ask(checks.given(images), checks.QUESTION, max_new_tokens=LENGTH, **options)
            assert list(answer.tokens) == expected


def test_stop_strings_end_an_answer_as_in_generate(tmp_path: Path) -> None:
    """Whole tokens, parts of tokens, special tokens, and one that begins in the prompt."""
    model = tiny_family("qwen2_5_vl")
    images, tokenizer = checks.pictures(model, 0), model.tokenizer
    words = checks.tokenizer(model)
    prompt = whole_prompt(model, words.first(checks.QUESTION))
    unreadable = [n for n in range(len(tokenizer)) if "\ufffd" in tokenizer.decode([n])]
    options: dict[str, Any] = {"suppress_tokens": [*unreadable, *model.prompt.stop], "no_repeat_ngram_size": 1}
    said = generated(model, prompt, images, **options)
    text = str(tokenizer.decode(said))
    stops = [text[3:6], text[4:5], text[:2], text[-4:], f"\n{text[0]}", "<|im_start|>", "nowhere"]
    ends = list[int]()
    with eager(model, tmp_path) as opened:
        for stop in stops:
            expected = generated(model, prompt, images, stop_strings=[stop], **options)
            answer = opened.ask(
                checks.given(images), checks.QUESTION, max_new_tokens=LENGTH, stop_strings=(stop,), **options
            )
            assert list(answer.tokens) == expected, stop
            assert answer.text == str(tokenizer.decode(expected, skip_special_tokens=True)).partition(stop)[0]
            ends.append(len(expected))
    assert len(set(ends)) > 3 and max(ends) == LENGTH


@pytest.mark.parametrize("name", ["penalty", "pairs", "words", "at least"])
def test_a_pruned_prompt_counts_all_its_rows(vlm: Pipeline, llava: Family, name: str) -> None:
    """Logits of the masked reference, processed by transformers with the ids of the unpruned prompt."""
    images, tail = checks.pictures(llava, 0), checks.tokenizer(llava).first(checks.QUESTION)
    prompt, options = whole_prompt(llava, tail), CASES[name]
    answer = vlm.ask(checks.given(images), checks.QUESTION, "btp", max_new_tokens=8, **options)
    said: list[int] = []
    for token in answer.tokens:
        logits = checks.reference(vlm, llava, images, "btp", [*tail, *said], answer.kept)[-1]
        ids = torch.tensor([[*prompt, *said]])
        scores = processed(llava, options, ids, torch.from_numpy(logits)[None], len(prompt))
        assert token == int(scores.argmax())
        said.append(token)


def processed(
    family: Family, options: dict[str, Any], ids: torch.Tensor, logits: torch.Tensor, prompt: int
) -> torch.Tensor:
    """Return logits [1, V] after transformers' processors; `ids` [1, S] has `prompt` rows and the answer."""
    config = GenerationConfig(**options)
    config._eos_token_tensor = torch.tensor([STOP])
    return family.model._get_logits_processor(config, input_ids_seq_length=prompt)(ids, logits.clone())  # type: ignore[no-any-return]


FILTERS: dict[str, Callable[[np.random.Generator], Any]] = {
    "temperature": lambda dice: dice.uniform(0.2, 3),
    "top_k": lambda dice: int(dice.integers(1, 50)),
    "top_p": lambda dice: dice.uniform(0.05, 0.99),
    "min_p": lambda dice: dice.uniform(0.01, 0.6),
    "typical_p": lambda dice: dice.uniform(0.1, 0.99),
    "epsilon_cutoff": lambda dice: dice.uniform(0.001, 0.2),
    "repetition_penalty": lambda dice: dice.uniform(0.6, 2),
    "no_repeat_ngram_size": lambda dice: int(dice.integers(1, 5)),
    "suppress_tokens": lambda dice: dice.integers(0, 40, 4).tolist(),
    "begin_suppress_tokens": lambda dice: dice.integers(0, 40, 4).tolist(),
    "bad_words_ids": lambda dice: [dice.integers(0, 6, n).tolist() for n in (1, 2, 2, 3)],
    "min_new_tokens": lambda dice: int(dice.integers(1, 7)),
}


@settings(max_examples=200)
@given(st.integers(0, 10**9), st.sets(st.sampled_from(sorted(FILTERS))))
def test_probabilities_are_those_of_transformers(llava: Family, seed: int, names: set[str]) -> None:
    """All processors and filters together, in the order of transformers; equal logits, too."""
    dice = np.random.default_rng(seed)
    options = {"temperature": 1.0, "top_k": 0} | {name: FILTERS[name](dice) for name in sorted(names)}
    prompt, said = dice.integers(0, 6, 8).tolist(), dice.integers(0, 6, int(dice.integers(0, 8))).tolist()
    logits = (3 * dice.normal(size=40)).round(1).astype(np.float32)
    ids, given_options = torch.tensor([[*prompt, *said]]), {"do_sample": True, "eos_token_id": STOP, **options}
    want = processed(llava, given_options, ids, torch.from_numpy(logits)[None], len(prompt)).softmax(dim=-1)[0]
    sampler = Sampler(Sampling(**options), (STOP,), prompt)
    for token in said:
        sampler.add(token)
    np.testing.assert_allclose(sampler.probabilities(sampler.scores(logits)), want.numpy(), atol=2e-6)


def test_the_settings_of_a_folder_are_the_defaults(llava: Family, tmp_path: Path) -> None:
    """`ask` without options equals `generate` without options, over three turns of a conversation."""
    folder = saved(llava, tmp_path / "model", repetition_penalty=1.3, max_new_tokens=9, suppress_tokens=SPECIAL)
    family = load(str(folder))
    assert family.prompt.sampling == Sampling(9, top_k=50, repetition_penalty=1.3, suppress_tokens=tuple(SPECIAL))
    with eager(family, tmp_path / "bundle") as opened:
        checks.check_conversation(opened, family, [checks.QUESTION, checks.LONGER, "w2"])
        image = checks.given(checks.pictures(family, 0))
        free = opened.ask(image, checks.QUESTION, sampling=Sampling())
        assert len(free.tokens) > 9
        loose: Any = {"max_new_tokens": 64, "repetition_penalty": 1.0, "suppress_tokens": ()}
        assert opened.ask(image, checks.QUESTION, **loose).tokens == free.tokens


def test_a_bundle_follows_the_settings_and_says_which_it_does_not(llava: Family, tmp_path: Path) -> None:
    folder = saved(llava, tmp_path / "model", repetition_penalty=1.3, num_beams=3)
    family = load(str(folder))
    made = export([ExportPlan(family, ())], target("cpu"), tmp_path / "bundle", verify=False)
    assert [w for w in made.warnings if w.endswith("answers may differ from transformers': num_beams 3")]
    images = checks.pictures(family, 0)
    prompt = whole_prompt(family, checks.tokenizer(family).first(checks.QUESTION))
    with Pipeline.load(tmp_path / "bundle") as opened:
        answer = opened.ask(checks.given(images), checks.QUESTION, max_new_tokens=LENGTH)
    assert list(answer.tokens) == generated(llava, prompt, images, repetition_penalty=1.3)


def saved(family: Family, folder: Path, **options: Any) -> Path:
    """Write a checkpoint as save_pretrained does, with these settings for generation."""
    family.model.save_pretrained(folder)
    family.processor.save_pretrained(folder)
    GenerationConfig(eos_token_id=STOP, pad_token_id=0, **options).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"repetition_penalty": 0},
            "repetition_penalty must be a number from 1e-30 to 1e30, got 0; correct generation_config",
        ),
        ({"suppress_tokens": [64]}, "bans the token 64, the model has 0 to 63; correct it"),
        (
            {"bad_words_ids": "no"},
            "bad_words_ids must be a list of sequences of token ids, none of them empty, got 'no'",
        ),
        ({"do_sample": True, "temperature": 0.0}, "temperature is 0 with do_sample"),
    ],
)
def test_wrong_settings_of_a_folder(options: dict[str, Any], said: str) -> None:
    with pytest.raises(BadModel, match=said):
        settings_of(GenerationConfig(**options), 64)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"num_beams": 4, "length_penalty": 2.0}, "num_beams 4"),
        ({"penalty_alpha": 0.6}, "penalty_alpha 0.6"),
        ({"guidance_scale": 1.5, "max_length": 300}, "guidance_scale 1.5, max_length 300"),
        ({"do_sample": True, "top_h": 0.3}, "top_h 0.3"),
        ({"sequence_bias": [[[3], 1.0]]}, r"sequence_bias \[\[\[3\], 1.0\]\]"),
    ],
)
def test_settings_that_are_not_followed_are_named(options: dict[str, Any], named: str) -> None:
    (warning,) = settings_of(GenerationConfig(**options), 64)[1]
    assert re.fullmatch(rf"generation_config.json has settings that a bundle does not follow, .*: {named}", warning)


def test_settings_without_effect_are_not_named() -> None:
    options = {"use_cache": False, "num_beams": 1, "top_h": 0.3, "max_new_tokens": 9, "max_length": 300}
    assert settings_of(GenerationConfig(**options), 64) == (Sampling(9, top_k=50), ())


def test_random_draws_of_a_folder() -> None:
    """transformers draws among 50 tokens unless the file says otherwise."""
    made = settings_of(GenerationConfig(do_sample=True, top_p=0.8, min_length=9, min_new_tokens=2), 64)[0]
    assert made == Sampling(temperature=1.0, top_p=0.8, top_k=50, min_new_tokens=2)
    assert settings_of(GenerationConfig(temperature=0.7), 64)[0] == Sampling(top_k=50)


def test_a_long_default_is_lowered_to_what_fits(vlm: Pipeline, llava: Family) -> None:
    image, context = checks.given(checks.pictures(llava, 0)), llava.dimensions.context
    long = Sampling(max_new_tokens=10 * context)
    bundle = replace(vlm.bundle, prompt=replace(vlm.bundle.prompt, sampling=long))
    opened = Pipeline(bundle, vlm._backend, ["btp"])
    rows = opened.ask(image, checks.QUESTION, "full", max_new_tokens=1).receipt.prompt_rows
    assert opened.ask(image, checks.QUESTION, "full").receipt.sampling.max_new_tokens == context - rows
    chat = opened.open(image, "full", capacity=rows + 70)
    assert chat.ask(checks.QUESTION).receipt.sampling.max_new_tokens == 70
    for call in (opened.ask, opened.stream):
        with pytest.raises(BadPrompt, match=f"and {10 * context} new tokens need"):
            call(image, checks.QUESTION, "full", max_new_tokens=10 * context)


def test_streams_end_before_a_stop_string(vlm: Pipeline, llava: Family) -> None:
    image = checks.given(checks.pictures(llava, 0))
    whole = vlm.ask(image, checks.QUESTION, "full", max_new_tokens=12).text
    words = whole.split()
    for stop in (f"{words[4]} {words[5][:2]}", words[3][1:], whole[-3:], "nothing"):
        answer = vlm.ask(image, checks.QUESTION, "full", max_new_tokens=12, stop_strings=(stop,))
        assert answer.text == whole.partition(stop)[0]
        pieces = list(vlm.stream(image, checks.QUESTION, "full", max_new_tokens=12, stop_strings=(stop, "w99")))
        assert "".join(pieces) == answer.text
        assert not any(stop in "".join(pieces[:n]) for n in range(len(pieces) + 1))
