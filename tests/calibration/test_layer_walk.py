# SPDX-License-Identifier: Apache-2.0
"""Layer by layer against the forward pass of transformers."""

from __future__ import annotations

import copy
import weakref

import numpy as np
import torch
from PIL import Image

from secateur.calibration.layer_walk import layers, prompts, walk
from secateur.calibration.samples import Sample
from secateur.families.base import Family
from secateur.runtime.image import load_image
from secateur.runtime.preprocess import pixel_values
from secateur.runtime.tokenizer import Tokenizer
from tests.conftest import tiny_family
from tests.reference import masked_run

QUESTIONS = ("w1 w2", "w3", "w4 w5 w6 w7")


def pictures() -> list[Sample]:
    rng = np.random.default_rng(1)
    return [Sample(Image.fromarray(rng.integers(0, 256, (24, 24, 3), np.uint8)), text) for text in QUESTIONS]


def test_rows_queries_and_keys_are_those_of_transformers(tiny: Family) -> None:
    samples = pictures()
    tokenizer = Tokenizer(tiny.prompt, copy.deepcopy(tiny.tokenizer.backend_tokenizer))
    seen = [
        masked_run(tiny, pixel_values(load_image(s.image), tiny.preprocess), tokenizer.first(s.question), {})
        for s in samples
    ]
    start = list(prompts(tiny, samples))
    steps = list(walk(tiny, start, tiny.layout.views))
    assert [step.number for step in steps] == list(range(tiny.dimensions.layers))
    for step in steps:
        layer = step.projections
        for rows, oracle in zip(step.rows, seen, strict=True):
            torch.testing.assert_close(rows, oracle.before[step.number], atol=1e-5, rtol=1e-4)
            normalized = layer.normalize(rows)
            query, key = layer.heads(
                torch.nn.functional.linear(normalized, layer.query, layer.query_bias),
                torch.nn.functional.linear(normalized, layer.key, layer.key_bias),
                torch.arange(rows.shape[1])[None],
            )
            torch.testing.assert_close(query, oracle.query[step.number], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(key, oracle.key[step.number], atol=1e-4, rtol=1e-4)


def test_a_walk_can_be_repeated_and_stopped(tiny: Family) -> None:
    start = list(prompts(tiny, pictures()))
    for step in walk(tiny, start, tiny.layout.views):
        if step.number == 2:
            break
    first, second = ([step.rows for step in walk(tiny, start, tiny.layout.views)] for _ in range(2))
    for before, after in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(a is b.rows for a, b in zip(first[0], start, strict=True))


def test_the_caller_may_train(tiny: Family) -> None:
    """Between the layers gradients are on, the rows can be used in a graph, and the model is unchanged."""
    before = tiny.decoder.config._attn_implementation
    start = list(prompts(tiny, pictures()))
    weight = torch.ones(tiny.dimensions.width, requires_grad=True)
    for step in walk(tiny, start, tiny.layout.views):
        assert torch.is_grad_enabled() and tiny.decoder.config._attn_implementation == before
        (step.rows[0] * weight).sum().backward()
    assert weight.grad is not None and not start[0].rows.requires_grad


def test_planes_are_added_to_the_rows_of_images() -> None:
    """Qwen3-VL's own forward pass is the oracle."""
    family, samples = tiny_family("qwen3_vl"), pictures()
    tokenizer = Tokenizer(family.prompt, copy.deepcopy(family.tokenizer.backend_tokenizer))
    start = list(prompts(family, samples))
    assert all(plane.shape[1] == family.layout.vision_tokens for each in start for plane in each.planes)
    assert all(len(each.planes) == family.dimensions.planes > 0 for each in start)
    seen = list(walk(family, start, family.layout.views))
    for i, sample in enumerate(samples):
        ids = [*family.layout.ids(family.image_token_id), *tokenizer.first(sample.question)]
        given = family.inputs(torch.tensor([ids]), pixel_values(load_image(sample.image), family.preprocess))
        states = family.model(**given, output_hidden_states=True).hidden_states
        for step in seen[family.dimensions.planes + 1 :]:  # transformers notes states before it adds a plane
            torch.testing.assert_close(step.rows[i], states[step.number], atol=1e-5, rtol=1e-4)


def test_only_one_layer_of_rows_is_held(tiny: Family) -> None:
    """The rows of each sample are freed when it has passed the layer; the last passage holds both of its own."""
    start = list(prompts(tiny, pictures()))
    held = [weakref.ref(each.rows) for each in start]
    steps = layers(tiny, start)
    _, _, passages = next(steps)
    assert not start and all(ref() is not None for ref in held)
    for passage in passages:
        assert [ref() is None for ref in held].index(False) == passage.sample
